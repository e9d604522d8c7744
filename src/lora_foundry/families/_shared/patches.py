"""Latents as patches: what several transformers read is not a picture of latents but a row of tokens, each of which has the
latents of a small square as its channels."""

from __future__ import annotations

import torch
from torch import Tensor

from lora_foundry.families._shared.drawing import Shot
from lora_foundry.families._shared.qwen_vae import QwenVaeDrawing, QwenVaeModel

SIDE = 2  # latents that a patch's side has


def pack(latents: Tensor) -> Tensor:
    """Latents (n, c, h, w) as tokens (n, h/2 * w/2, c * 4), row by row."""
    n, channels, high, wide = latents.shape
    squares = latents.reshape(n, channels, high // SIDE, SIDE, wide // SIDE, SIDE)
    return squares.permute(0, 2, 4, 1, 3, 5).reshape(n, -1, channels * SIDE**2)


def unpack(tokens: Tensor, high: int, wide: int) -> Tensor:
    """Tokens (n, high/2 * wide/2, c * 4) as latents (n, c, high, wide)."""
    n, _, width = tokens.shape
    squares = tokens.reshape(n, high // SIDE, wide // SIDE, width // SIDE**2, SIDE, SIDE)
    return squares.permute(0, 3, 1, 4, 2, 5).reshape(n, -1, high, wide)


class PatchModel(QwenVaeModel):
    """A flow-matching base on patches of the latents of Qwen-Image's VAE (`FamilyModel`)."""

    patch = SIDE

    def _unpacked(self, latents: Tensor, frame: tuple[int, int]) -> Tensor:
        wide, high = (side // self._parts.vae_scale_factor for side in frame)
        return unpack(latents, high, wide)


class PatchDrawing(QwenVaeDrawing):
    """A pipeline whose noise and result are patches."""

    def noise(self, shot: Shot, generator: torch.Generator) -> Tensor:
        """Drawn as latents, so that it is the pipeline's own for the same seed."""
        channels = self.network.config.in_channels // SIDE**2
        scale = self.pipeline.vae_scale_factor
        shape = (1, channels, shot.height // scale, shot.width // scale)
        return pack(torch.randn(shape, generator=generator))

    def unpacked(self, latents: Tensor, shot: Shot) -> Tensor:
        scale = self.pipeline.vae_scale_factor
        return unpack(latents, shot.height // scale, shot.width // scale)
