"""A base model by its parts, each loaded when it is first used: a training whose latents and captions are cached needs
neither VAE nor text encoder, and one that does needs them before its UNet, so that a small computer's memory never
holds all at once; in a large one the UNet's file is read while the encoders work. Only reading is done in a thread:
while the libraries make modules they change torch for the whole process. Offers what the trainer uses of a diffusers
pipeline, under the same names."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lora_foundry.errors import BaseModelError
from lora_foundry.families._shared import loading
from lora_foundry.families._shared.convolutions import quicken
from lora_foundry.families._shared.devices import available_memory
from lora_foundry.families._shared.inspect import Base
from lora_foundry.families._shared.loading import (
    FAULTS,
    denoiser_name,
    load_pipeline,
    quiet_libraries,
    told_training,
)

_TEXT_ENCODER = "text_encoder"  # how a pipeline's names for them begin
_LDM_UNET = "model.diffusion_model."
_KINDS = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip
_PLENTY = 4  # times the checkpoint's size: as much free memory as reading ahead asks for


class Parts:
    """The parts of a base; the denoiser in `dtype`, the encoders in fp32."""

    def __init__(self, base: Base, dtype: torch.dtype) -> None:
        self.base, self._dtype = base, dtype
        self._name = denoiser_name(base)
        self._vae: Any = None
        self._encoders: Any = None
        self._drawing: Any = None
        self._ahead: Future[dict[str, Tensor]] | None = None

    def read_ahead(self) -> None:
        """Begins to read a checkpoint file's denoiser in a thread: libraries are imported and encoders work meanwhile.
        Does nothing where the computer's memory would be short of both."""
        if self.base.layout != "file" or not self.base.path.is_file():
            return
        if available_memory() < _PLENTY * self.base.path.stat().st_size:
            return
        reader = ThreadPoolExecutor(1, thread_name_prefix="read-ahead")
        self._ahead = reader.submit(read_tensors, self.base.path, _LDM_UNET, self._dtype)
        reader.shutdown(wait=False)

    @cached_property
    def denoiser_config(self) -> dict[str, Any]:
        """The denoiser's configuration, without loading it. Raises BaseModelError."""
        return self._configuration(f"{self._name}/config.json")

    @cached_property
    def scheduler_config(self) -> dict[str, Any]:
        """The noise schedule's configuration, with what checkpoint or recipe say of it. Raises BaseModelError."""
        return self._configuration("scheduler/scheduler_config.json") | told_training(self.base)

    @property
    def vae_scale_factor(self) -> int:
        """Pixels a latent's side stands for."""
        return int(2 ** (len(self._configuration("vae/config.json")["block_out_channels"]) - 1))

    @property
    def vae(self) -> Any:
        """The VAE in fp32, loaded at its first use and by itself. Raises BaseModelError."""
        if self._vae is None:
            self._vae = self._load_vae()
            quicken(self._vae)
        return self._vae

    @property
    def encoders(self) -> Any:
        """A pipeline of everything but the denoiser, loaded at its first use on the CPU; a VAE that is there already
        stays where it is. Raises BaseModelError."""
        if self._encoders is None:
            given = {self._name: None, "vae": self.vae}
            self._encoders = load_pipeline(self.base, torch.float32, None, given)
        return self._encoders

    def _load_vae(self) -> Any:
        import diffusers

        path, config = self.base.path, self._configuration("vae/config.json")
        with quiet_libraries(), _translated(path):
            kind = getattr(diffusers, config.get("_class_name", "AutoencoderKL"))
            if self.base.layout == "folder":
                vae: Any = kind.from_pretrained(
                    path, subfolder="vae", torch_dtype=torch.float32, variant=self.base.variant or None,
                    local_files_only=True, use_safetensors=True,
                )  # fmt: skip
            else:
                vae = kind.from_single_file(
                    str(path), config=str(loading.CONFIGURATIONS / self.base.configuration), subfolder="vae",
                    torch_dtype=torch.float32, local_files_only=True,
                )  # fmt: skip
        return vae.requires_grad_(False).eval()

    @property
    def text_encoders(self) -> dict[str, Any]:
        """The text encoders by their names in the pipeline."""
        parts = self.encoders.components.items()
        return {name: part for name, part in parts if name.startswith(_TEXT_ENCODER) and part is not None}

    def drawing(self, network: Any) -> Any:
        """A pipeline of `network` and the VAE, for prompts that are encoded already: without text encoders, which may be
        gone, and whose type a pipeline would take for the one to compute in. Raises BaseModelError."""
        if self._drawing is None:
            encoders = [
                name for name in self._configuration("model_index.json") if name.startswith(_TEXT_ENCODER)
            ]
            given = {self._name: None, "vae": self.vae, **dict.fromkeys(encoders)}
            self._drawing = load_pipeline(self.base, torch.float32, None, given)
        self._drawing.register_modules(**{self._name: network, "vae": self.vae})
        return self._drawing

    def load_denoiser(self) -> Any:
        """The frozen denoiser on the CPU. Raises BaseModelError."""
        import diffusers

        path = self.base.path
        kind = getattr(
            diffusers, "ZImageTransformer2DModel" if self._name == "transformer" else "UNet2DConditionModel"
        )
        with quiet_libraries(), _translated(path):
            if self.base.layout == "folder":
                network: Any = kind.from_pretrained(
                    path, subfolder=self._name, torch_dtype=self._dtype, variant=self.base.variant or None,
                    local_files_only=True, use_safetensors=True,
                )  # fmt: skip
            else:
                network = kind.from_single_file(
                    self._denoiser_tensors(),
                    config=str(loading.CONFIGURATIONS / self.base.configuration),
                    subfolder=self._name, torch_dtype=self._dtype, local_files_only=True,
                )  # fmt: skip
        return network.requires_grad_(False).eval()

    def _denoiser_tensors(self) -> dict[str, Tensor]:
        ahead, self._ahead = self._ahead, None
        return ahead.result() if ahead else read_tensors(self.base.path, _LDM_UNET, self._dtype)

    def release(self, text: bool, vae: bool) -> None:
        """Lets go of the text encoders, of the VAE, or of both; used again, they are loaded again. A VAE that is kept
        waits in the computer's memory."""
        if text:
            self._encoders = None
        elif vae and self._encoders is not None:
            self._encoders.register_modules(vae=None)
        if vae:
            self._vae = None
        elif self._vae is not None:
            self._vae.cpu()

    def _configuration(self, name: str) -> dict[str, Any]:
        folder = (
            self.base.path
            if self.base.layout == "folder"
            else loading.CONFIGURATIONS / self.base.configuration
        )
        with _translated(self.base.path):
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
            raw = torch.empty(end - begin, dtype=torch.uint8)
            if file.readinto(raw.numpy().data) != end - begin:
                raise ValueError(f"the file ends within {name}; download or copy it again")
            tensor = raw.view(_KINDS[entry["dtype"]]).view(entry["shape"])
            tensors[name] = tensor.to(dtype) if tensor.is_floating_point() else tensor
    return tensors


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except FAULTS as error:
        reason = " ".join(str(error).split())[:200]
        raise BaseModelError(f"The base model {path} cannot be loaded: {reason}") from error
