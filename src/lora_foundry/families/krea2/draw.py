"""How Krea 2 draws: by its own sampler, from patches, prompts of any length side by side."""

from __future__ import annotations

from lora_foundry.families._shared.patches import PatchDrawing


class Drawing(PatchDrawing):
    """A Krea 2 pipeline, ready to draw."""

    one_length = False
