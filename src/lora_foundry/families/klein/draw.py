"""How FLUX.2 Klein draws, and edits: a reference image is given to the network beside the noise, and the prompt says
what becomes of it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lora_foundry.domain.dataset import ReferenceUse
from lora_foundry.families._shared import drawing
from lora_foundry.families._shared.drawing import Guide, Shot, read_reference

_PATCH = 2


class Drawing(drawing.Drawing):
    """A FLUX.2 Klein pipeline, ready to draw."""

    def noise(self, shot: Shot, generator: torch.Generator) -> Tensor:
        """Noise for patches of two by two latents."""
        side = self.pipeline.vae_scale_factor * _PATCH
        shape = (1, self.network.config.in_channels, shot.height // side, shot.width // side)
        return torch.randn(shape, generator=generator)

    def decode(self, latents: Tensor) -> Tensor:
        """The pipeline has taken the normalisation back already."""
        vae = self.pipeline.vae
        pixels: Tensor = vae.decode(latents.to(vae.dtype), return_dict=False)[0]
        return pixels

    def guide(self, use: ReferenceUse) -> Guide:
        """Edits the reference as the prompt says."""
        return Edit(self.pipeline, use)


class Edit(Guide):
    """The reference as further tokens of the network; how closely it is followed is for the prompt to say."""

    def __init__(self, pipeline: Any, use: ReferenceUse) -> None:
        super().__init__(pipeline, use)
        self._image = read_reference(use.path)

    def denoise(self, **options: Any) -> Any:
        return self._pipeline(image=[self._image], **options)
