"""How Anima draws: by its own sampler, in fp32 between the steps."""

from __future__ import annotations

import torch
from torch import Tensor

from lora_foundry.families._shared.drawing import Shot
from lora_foundry.families._shared.qwen_vae import FRAMES, QwenVaeDrawing


class Drawing(QwenVaeDrawing):
    """An Anima pipeline, ready to draw."""

    def noise(self, shot: Shot, generator: torch.Generator) -> Tensor:
        """Of a film of one frame."""
        scale = self.pipeline.vae_scale_factor
        shape = (1, self.pipeline.vae.config.z_dim, shot.height // scale, shot.width // scale)
        return torch.randn(shape, generator=generator).unsqueeze(FRAMES)

    def latent_type(self) -> torch.dtype:
        return torch.float32
