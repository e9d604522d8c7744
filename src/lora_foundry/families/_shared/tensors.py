"""Reads tensors out of safetensors files, one by one and in the type they are wanted in; weights that are kept in fp8
with a scale beside them are multiplied by it, since without it they mean something else."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lora_foundry.files.safetensors import read_header

_KINDS = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "U8": torch.uint8, "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip
# What stands beside an fp8 weight: its scale under either program's name, and what only matters to fp8 arithmetic.
_SCALES = (".scale_weight", ".weight_scale")
_BESIDE = (".scale_input", ".input_scale", ".comfy_quant", "scaled_fp8")


def has_scales(path: Path) -> bool:
    """Whether a file keeps weights in fp8 with scales."""
    return any(name.endswith(_SCALES) for name in read_header(path).shapes)


def read_tensors(path: Path, prefix: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """The tensors of a safetensors file whose names begin with `prefix`, floating ones in `dtype`, fp8 weights with
    their scales applied. Read one by one and not mapped, since a mapped file of another type would stand in memory
    beside what was made of it. Raises ValueError for a file that ends too early."""
    tensors: dict[str, Tensor] = {}
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header: dict[str, Any] = json.loads(file.read(length))
        header.pop("__metadata__", None)
        read = _Reader(file, 8 + length, header)
        wanted = [(name, entry) for name, entry in header.items() if name.startswith(prefix)]
        for name, entry in sorted(wanted, key=lambda item: item[1]["data_offsets"][0]):
            if name.endswith((*_SCALES, *_BESIDE)):
                continue
            tensor = read(name)
            if not tensor.is_floating_point():
                tensors[name] = tensor
                continue
            stem = name.removesuffix(".weight")
            scale = next((stem + ending for ending in _SCALES if stem + ending in header), None)
            if scale is None or stem == name or not entry["dtype"].startswith("F8"):
                tensors[name] = tensor.to(dtype)
            else:
                factor = read(scale).float()
                rows = factor.reshape(-1, *[1] * (tensor.ndim - 1)) if factor.numel() > 1 else factor
                tensors[name] = (tensor.float() * rows).to(dtype)
    return tensors


class _Reader:
    """The tensors of an open file by name."""

    def __init__(self, file: Any, start: int, header: Mapping[str, Any]) -> None:
        self._file, self._start, self._header = file, start, header

    def __call__(self, name: str) -> Tensor:
        begin, end = self._header[name]["data_offsets"]
        self._file.seek(self._start + begin)
        raw = torch.empty(end - begin, dtype=torch.uint8)
        if self._file.readinto(raw.numpy().data) != end - begin:
            raise ValueError(f"the file ends within {name}; download or copy it again")
        return raw.view(_KINDS[self._header[name]["dtype"]]).view(self._header[name]["shape"])
