"""Qwen-Image's VAE, which several families use: made for films, of which a picture is one frame, and with latents that are
normalised channel by channel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lora_foundry.families._shared.drawing import Drawing
from lora_foundry.families._shared.flow import FlowModel

FRAMES = 2  # the dimension of (n, c, frames, h, w)


def vae_tensors(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """A VAE file's tensors under the library's names, which it may have already. The layout is Wan's."""
    from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers

    if any(".mid_block." in name for name in tensors):
        return dict(tensors)
    converted: dict[str, Tensor] = convert_wan_vae_to_diffusers(dict(tensors))
    return converted


def normalised(latents: Tensor, config: Any) -> Tensor:
    """Latents (n, c, h, w) of the VAE, as networks want them."""
    mean, spread = _statistics(latents, config)
    return (latents - mean) / spread


def original(latents: Tensor, config: Any) -> Tensor:
    """The way back from `normalised`."""
    mean, spread = _statistics(latents, config)
    return latents * spread + mean


def _statistics(like: Tensor, config: Any) -> tuple[Tensor, Tensor]:
    mean, spread = (
        torch.tensor(values).view(1, -1, 1, 1).to(like)
        for values in (config.latents_mean, config.latents_std)
    )
    return mean, spread


class QwenVaeModel(FlowModel):
    """A flow-matching base on latents (n, c, h, w) of this VAE (`FamilyModel`)."""

    def _encode(self, pixels: Tensor) -> Tensor:
        return super()._encode(pixels.unsqueeze(FRAMES)).squeeze(FRAMES)

    def _from_vae(self, mean: Tensor) -> Tensor:
        return normalised(mean, self._vae.config)

    def _to_vae(self, latents: Tensor) -> Tensor:
        return original(latents, self._vae.config)

    def _decode_part(self, latents: Tensor) -> Tensor:
        return super()._decode_part(latents.unsqueeze(FRAMES)).squeeze(FRAMES)


class QwenVaeDrawing(Drawing):
    """A pipeline with this VAE."""

    def decode(self, latents: Tensor) -> Tensor:
        vae = self.pipeline.vae
        plain = original(latents.to(vae.dtype), vae.config)
        pixels: Tensor = vae.decode(plain.unsqueeze(FRAMES), return_dict=False)[0]
        return pixels.squeeze(FRAMES)
