"""A base model by its parts, each loaded when it is first used: a training whose latents and captions are cached needs
neither VAE nor text encoder, and one that does needs them before its UNet, so that the computer's memory never holds
all at once. Offers what the trainer uses of a diffusers pipeline, under the same names."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lora_foundry.bases import loading
from lora_foundry.bases.inspect import Base
from lora_foundry.bases.loading import FAULTS, load_pipeline, quiet_libraries
from lora_foundry.errors import BaseModelError

_LDM_UNET = "model.diffusion_model."
_KINDS = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip


class Parts:
    """The parts of a Stable Diffusion base; the UNet in `dtype`, the encoders in fp32."""

    def __init__(self, base: Base, dtype: torch.dtype) -> None:
        self._base, self._dtype = base, dtype
        self._encoders: Any = None

    @cached_property
    def unet_config(self) -> dict[str, Any]:
        """The UNet's configuration, without loading it. Raises BaseModelError."""
        return self._configuration("unet/config.json")

    @cached_property
    def scheduler_config(self) -> dict[str, Any]:
        """The noise schedule's configuration. Raises BaseModelError."""
        return self._configuration("scheduler/scheduler_config.json")

    @property
    def vae_scale_factor(self) -> int:
        """Pixels a latent's side stands for."""
        return int(2 ** (len(self._configuration("vae/config.json")["block_out_channels"]) - 1))

    @property
    def vae(self) -> Any:
        return self._loaded_encoders().vae

    @property
    def text_encoder(self) -> Any:
        return self._loaded_encoders().text_encoder

    @property
    def tokenizer(self) -> Any:
        return self._loaded_encoders().tokenizer

    def load_unet(self) -> Any:
        """The frozen UNet on the CPU. Raises BaseModelError."""
        from diffusers import UNet2DConditionModel

        path = self._base.path
        with quiet_libraries(), _translated(path):
            if self._base.layout == "folder":
                unet: Any = UNet2DConditionModel.from_pretrained(
                    path, subfolder="unet", torch_dtype=self._dtype, variant=self._base.variant or None,
                    local_files_only=True, use_safetensors=True,
                )  # fmt: skip
            else:
                unet = UNet2DConditionModel.from_single_file(
                    read_tensors(path, _LDM_UNET, self._dtype),
                    config=str(loading.CONFIGURATIONS / self._base.family),
                    subfolder="unet", torch_dtype=self._dtype, local_files_only=True,
                )  # fmt: skip
        return unet.requires_grad_(False).eval()

    def release(self) -> None:
        """Lets go of the encoders; used again, they are loaded again."""
        self._encoders = None

    def _loaded_encoders(self) -> Any:
        if self._encoders is None:
            self._encoders = load_pipeline(self._base, torch.float32, "cpu", without=("unet",))
        return self._encoders

    def _configuration(self, name: str) -> dict[str, Any]:
        folder = (
            self._base.path if self._base.layout == "folder" else loading.CONFIGURATIONS / self._base.family
        )
        with _translated(self._base.path):
            values: dict[str, Any] = json.loads((folder / name).read_text(encoding="utf-8"))
        return values


def read_tensors(path: Path, prefix: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """The tensors of a safetensors file whose names begin with `prefix`, floating ones in `dtype`. Read one by one and
    not mapped, since a mapped file of another type would stand in memory beside what was made of it."""
    tensors: dict[str, Tensor] = {}
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header: dict[str, Any] = json.loads(file.read(length))
        wanted = [(name, entry) for name, entry in header.items() if name.startswith(prefix)]
        for name, entry in sorted(wanted, key=lambda item: item[1]["data_offsets"][0]):
            begin, end = entry["data_offsets"]
            file.seek(8 + length + begin)
            raw = torch.frombuffer(bytearray(file.read(end - begin)), dtype=_KINDS[entry["dtype"]])
            tensor = raw.view(entry["shape"])
            tensors[name] = tensor.to(dtype) if tensor.is_floating_point() else tensor
    return tensors


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except FAULTS as error:
        reason = " ".join(str(error).split())[:200]
        raise BaseModelError(f"The base model {path} cannot be loaded: {reason}") from error
