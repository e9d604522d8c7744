"""How Stable Diffusion 1.x and 2.x draw, and follow a reference image."""

from __future__ import annotations

from lora_foundry.domain.dataset import ReferenceUse
from lora_foundry.families._shared.drawing import Guide
from lora_foundry.families._shared.unet_drawing import UnetDrawing


class Drawing(UnetDrawing):
    """A Stable Diffusion pipeline, ready to draw."""

    def guide(self, use: ReferenceUse) -> Guide:
        """Image-to-image, or an IP-Adapter."""
        from lora_foundry.families.sd.reference import make_guide

        return make_guide(self.pipeline, use, self._section)
