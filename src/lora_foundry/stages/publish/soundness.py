"""Proves that a LoRA file holds numbers that can do something. Programs that load LoRAs take a file of NaN
or of zeros without a word, and its user is left with black pictures or with none that change."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from lora_foundry.errors import VerificationError

_LENGTH = 8  # the header's length stands in the first eight bytes
_TYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": np.uint16}
_OUTER = ("lora_up.weight", "lora_B.weight")  # zero in an untrained LoRA, so they tell whether it learned


class _Tensor(NamedTuple):
    name: str
    kind: str
    begin: int
    end: int


def check_numbers(path: Path) -> None:
    """Raises VerificationError unless the file is whole safetensors without NaN or infinity that changes
    something."""
    changes = False
    for name, values in _tensors(path):
        if not np.isfinite(values).all():
            raise VerificationError(f"{path} holds NaN or infinity in {name}; train again at a lower rate.")
        changes |= name.endswith(_OUTER) and bool(values.any())
    if not changes:
        raise VerificationError(
            f"{path} changes nothing: every outer weight of the LoRA is zero; train longer or at a higher rate."
        )


def _tensors(path: Path) -> Iterator[tuple[str, npt.NDArray[np.float32]]]:
    """Name and numbers of every tensor; raises VerificationError for a file that is not whole."""
    try:
        data = path.read_bytes()
        (length,) = struct.unpack("<Q", data[:_LENGTH])
        header = json.loads(data[_LENGTH : _LENGTH + length])
        start = _LENGTH + length
        tensors = [
            _Tensor(name, entry["dtype"], *(start + offset for offset in entry["data_offsets"]))
            for name, entry in header.items()
            if name != "__metadata__"
        ]
        if len(data) != max((tensor.end for tensor in tensors), default=start):
            raise ValueError("its length is not the one that its header says")
    except (OSError, struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise VerificationError(f"{path} is not a whole safetensors file ({error}); train again.") from error
    for tensor in tensors:
        if tensor.kind not in _TYPES:
            raise VerificationError(
                f"{path} holds {tensor.name} as {tensor.kind}, which is no LoRA's; train again."
            )
        yield tensor.name, _numbers(data[tensor.begin : tensor.end], tensor.kind)


def _numbers(data: bytes, kind: str) -> npt.NDArray[np.float32]:
    """As float32; bfloat16 is float32 without its lower half. What float32 cannot hold becomes infinite."""
    values = np.frombuffer(data, _TYPES[kind])
    if kind == "BF16":
        return (values.astype(np.uint32) << 16).view(np.float32)
    with np.errstate(over="ignore"):
        return values.astype(np.float32)
