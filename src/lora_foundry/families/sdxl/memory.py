"""What a training of SDXL takes of a GPU's memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lora_foundry.families._shared.memory import Kept

# Bytes a pixel of the picture, at the width of the real model, with a LoRA on every attention and feed-forward layer:
# counted on the meta device, where attention keeps no matrix.
_WHOLE, _CHECKPOINTED = 6930, 610
_WIDTH = 320


def kept(config: Mapping[str, Any], resolution: int) -> Kept:
    """What one picture of `resolution` squared takes; activations grow with the network's width."""
    pixels = resolution**2 * config["block_out_channels"][0] / _WIDTH
    return Kept(int(_WHOLE * pixels), int(_CHECKPOINTED * pixels))
