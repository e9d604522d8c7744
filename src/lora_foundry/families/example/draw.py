"""How it draws: what differs from other pipelines in the noise, the arguments, the way to pixels, or with a reference."""

from __future__ import annotations

from lora_foundry.families._shared import drawing


class Drawing(drawing.Drawing):
    """Nothing differs. `klein` has patches for noise and edits a reference, `z_image` takes prompts of unlike length."""
