"""A base model by its parts, each loaded when it is first used: a training whose latents and captions are cached needs
neither VAE nor text encoder, and one that does needs them before its denoiser, so that a small computer's memory never
holds all at once; in a large one the denoiser's file is read while the encoders work. Only reading is done in a thread:
while the libraries make modules they change torch for the whole process. Offers what the trainer uses of a diffusers
pipeline, under the same names."""

from __future__ import annotations

import json
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from lora_foundry.families._shared.base import Base
from lora_foundry.families._shared.convolutions import use_fast_convolutions
from lora_foundry.families._shared.devices import available_memory
from lora_foundry.families._shared.loading import (
    denoiser_tensors,
    load_denoiser,
    load_pipeline,
    load_vae,
    loader_of,
    translated,
)
from lora_foundry.families._shared.split import index_of, read_json

_TEXT = "text_"  # how a pipeline's names for text encoders, and what belongs to them, begin
_PLENTY = 4  # times the checkpoint's size: as much free memory as reading ahead asks for


class Parts:
    """The parts of a base; the denoiser in `dtype`, the VAE in fp32, the text encoders in `encoder_dtype`."""

    def __init__(self, base: Base, dtype: torch.dtype, encoder_dtype: torch.dtype = torch.float32) -> None:
        self.base, self._dtype, self._encoder_dtype = base, dtype, encoder_dtype
        self._loader = loader_of(base)
        self._name = self._loader.denoiser
        self._vae: Any = None
        self._encoders: Any = None
        self._drawing: Any = None
        self._ahead: Future[dict[str, Tensor]] | None = None

    def read_ahead(self) -> None:
        """Begins to read a file's denoiser in a thread: libraries are imported and encoders work meanwhile. Does nothing
        where the computer's memory would be short of both."""
        if self.base.layout == "folder" or not self.base.path.is_file():
            return
        if available_memory() < _PLENTY * self.base.path.stat().st_size:
            return
        reader = ThreadPoolExecutor(1, thread_name_prefix="read-ahead")
        self._ahead = reader.submit(denoiser_tensors, self.base, self._dtype)
        reader.shutdown(wait=False)

    @cached_property
    def denoiser_config(self) -> dict[str, Any]:
        """The denoiser's configuration, without loading it. Raises BaseModelError."""
        return self._configuration(f"{self._name}/config.json")

    @cached_property
    def scheduler_config(self) -> dict[str, Any]:
        """The noise schedule's configuration, with what checkpoint or recipe say of it. Raises BaseModelError."""
        return self._configuration("scheduler/scheduler_config.json") | self._loader.scheduler(self.base)

    @property
    def vae_scale_factor(self) -> int:
        """Pixels a latent's side stands for. A VAE of pictures says its blocks, one of films which of its steps shrink time,
        too."""
        config = self._configuration("vae/config.json")
        films = config.get("temperal_downsample")  # the library's own spelling
        return int(2 ** (len(config["block_out_channels"]) - 1 if films is None else len(films)))

    @property
    def vae(self) -> Any:
        """The VAE in fp32, loaded at its first use and by itself. Raises BaseModelError."""
        if self._vae is None:
            self._vae = load_vae(self.base, torch.float32)
            use_fast_convolutions(self._vae)
        return self._vae

    @property
    def encoders(self) -> Any:
        """A pipeline of everything but the denoiser, loaded at its first use on the CPU; a VAE that is there already
        stays where it is. Raises BaseModelError."""
        if self._encoders is None:
            given = {self._name: None, "vae": self.vae}
            self._encoders = load_pipeline(self.base, self._encoder_dtype, None, given)
        return self._encoders

    @property
    def text_encoders(self) -> dict[str, Any]:
        """The text encoders by their names in the pipeline."""
        parts = self.encoders.components.items()
        return {name: part for name, part in parts if name.startswith(_TEXT) and part is not None}

    def drawing(self, network: Any) -> Any:
        """A pipeline of `network` and the VAE, for prompts that are encoded already: without text encoders, which may be
        gone, and whose type a pipeline would take for the one to compute in. Raises BaseModelError."""
        if self._drawing is None:
            index = read_json(index_of(self._loader.configuration(self.base)))
            encoders = [name for name in index if name.startswith(_TEXT)]
            given = {self._name: None, "vae": self.vae, **dict.fromkeys(encoders)}
            self._drawing = load_pipeline(self.base, torch.float32, None, given)
        self._drawing.register_modules(**{self._name: network, "vae": self.vae})
        return self._drawing

    def load_denoiser(self) -> Any:
        """The frozen denoiser on the CPU. Raises BaseModelError."""
        ahead, self._ahead = self._ahead, None
        with translated(self.base.path):
            tensors = ahead.result() if ahead else None
        return load_denoiser(self.base, self._dtype, tensors)

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
        with translated(self.base.path):
            text = (self._loader.configuration(self.base) / name).read_text(encoding="utf-8")
            values: dict[str, Any] = json.loads(text)
        return values
