"""How Z-Image draws: by its own sampler, in fp32 between the steps, prompts of any length side by side."""

from __future__ import annotations

from typing import Any

import torch

from lora_foundry.families._shared import drawing
from lora_foundry.families._shared.drawing import Shot


class Drawing(drawing.Drawing):
    """A Z-Image pipeline, ready to draw."""

    one_length = False

    def options(self, shot: Shot) -> dict[str, Any]:
        """The pipeline counts guidance from 0, everyone else from 1."""
        return {"guidance_scale": shot.cfg - 1}

    def latent_type(self) -> torch.dtype:
        return torch.float32
