"""How SDXL draws."""

from __future__ import annotations

from lora_foundry.families._shared.unet_drawing import UnetDrawing


class Drawing(UnetDrawing):
    """An SDXL pipeline, ready to draw."""
