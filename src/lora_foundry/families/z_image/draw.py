"""How Z-Image draws: by its own sampler, in fp32 between the steps, prompts of any length side by side."""

from __future__ import annotations

import torch

from lora_foundry.families._shared import drawing


class Drawing(drawing.Drawing):
    """A Z-Image pipeline, ready to draw."""

    one_length = False

    def latent_type(self) -> torch.dtype:
        return torch.float32
