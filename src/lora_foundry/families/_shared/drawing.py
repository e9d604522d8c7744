"""How pictures are asked of a loaded pipeline: the shape of the noise, the arguments, the way from latents to pixels and
what a reference image does. A family's module `draw` has a class `Drawing` that says what is special about it; the
generator knows no more of any family."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from lora_foundry.domain.dataset import ReferenceUse
from lora_foundry.domain.sections import GenerateSection
from lora_foundry.errors import InputError
from lora_foundry.families._shared.base import Base
from lora_foundry.families._shared.loading import denoiser, loader_of
from lora_foundry.families._shared.prompts import Prompts
from lora_foundry.families._shared.registry import family_part
from lora_foundry.files.images import load_picture


class Shot(NamedTuple):
    """What the pictures that are computed together have in common, sizes in pixels."""

    width: int
    height: int
    steps: int
    cfg: float
    sampler: str
    scheduler: str


class Guide(ABC):
    """A pipeline that follows a reference image."""

    def __init__(self, pipeline: Any, use: ReferenceUse) -> None:
        self._pipeline = pipeline
        self.use = use

    @abstractmethod
    def denoise(self, **options: Any) -> Any:
        """What the pipeline returns for `options`, guided by the reference."""

    def close(self) -> None:  # noqa: B027 - most have nothing to undo
        """Leaves the pipeline as it was; nothing to do where it was not changed."""


class Drawing:
    """A family's pipeline, ready to draw."""

    one_length = True
    """Whether prompts that are computed together must have one length."""

    def __init__(self, pipeline: Any, base: Base, section: GenerateSection) -> None:
        self.pipeline, self.base, self._section = pipeline, base, section
        self._schedule = pipeline.scheduler.config

    @property
    def network(self) -> Any:
        """The denoiser."""
        return denoiser(self.pipeline, self.base)

    def prompts(self) -> Prompts:
        """The family's way with prompts, as the text encoders stand now."""
        prompts: Prompts = family_part(self.base.family, "prompts").make_prompts(self.pipeline, self.base)
        return prompts

    def noise(self, shot: Shot, generator: torch.Generator) -> Tensor:
        """The noise (1, c, h, w) of one picture, in fp32 on the CPU."""
        scale = self.pipeline.vae_scale_factor
        shape = (1, self.network.config.in_channels, shot.height // scale, shot.width // scale)
        return torch.randn(shape, generator=generator)

    def options(self, shot: Shot) -> dict[str, Any]:
        """The pipeline's arguments beside prompts, noise, size and steps."""
        return dict(loader_of(self.base).guidance(shot.cfg))

    def latent_type(self) -> torch.dtype:
        """The type in which the pipeline wants its noise."""
        dtype: torch.dtype = self.network.dtype
        return dtype

    def unpacked(self, latents: Tensor, shot: Shot) -> Tensor:
        """Latents as the pipeline gives them, as (n, c, h, w)."""
        return latents

    def decode(self, latents: Tensor) -> Tensor:
        """Latents (n, c, h, w) as pictures (n, 3, H, W) in -1..1 in the VAE's type."""
        vae = self.pipeline.vae
        plain = latents / vae.config.scaling_factor + (vae.config.shift_factor or 0.0)
        pixels: Tensor = vae.decode(plain.to(vae.dtype), return_dict=False)[0]
        return pixels

    def guide(self, use: ReferenceUse) -> Guide:
        """Follows a reference image. Raises InputError where this family cannot, or for one that cannot be used."""
        raise InputError(
            f"In this process {self.base.name} follows no reference image: Stable Diffusion 1.x and 2.x do, and edit "
            "models such as FLUX.2 Klein; set generate.backend = 'comfyui', or leave the reference out."
        )


def make_drawing(pipeline: Any, base: Base, section: GenerateSection) -> Drawing:
    """The drawing of a base's family."""
    drawing: Drawing = family_part(base.family, "draw").Drawing(pipeline, base, section)
    return drawing


def read_reference(path: Path) -> Image.Image:
    """A reference image. Raises InputError where it is none."""
    image = load_picture(path)
    if image is None:
        raise InputError(f"The reference image {path} is missing or no picture.")
    return image
