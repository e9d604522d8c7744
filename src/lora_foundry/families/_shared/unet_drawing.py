"""How the families with a UNet draw: with a sampler by name, built from the base's own noise schedule."""

from __future__ import annotations

from typing import Any

from lora_foundry.families._shared.drawing import Drawing, Shot
from lora_foundry.families._shared.samplers import make_scheduler


class UnetDrawing(Drawing):
    """Stable Diffusion and SDXL."""

    def options(self, shot: Shot) -> dict[str, Any]:
        """A fresh sampler is put into the pipeline, since some keep a state."""
        self.pipeline.scheduler = make_scheduler(self._schedule, shot.sampler, shot.scheduler)
        return super().options(shot) | {"guidance_rescale": self._section.guidance_rescale}
