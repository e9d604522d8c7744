"""What a training of Z-Image takes of a GPU's memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lora_foundry.families._shared.memory import Kept, kept_by_tokens

# Bytes a token, a channel and a layer, with a LoRA on every attention and feed-forward layer: counted on the meta
# device, with all activations kept and with gradient checkpointing.
_BYTES = 68.0, 4.5
_TEXT_TOKENS = 128  # of a usual caption


def kept(config: Mapping[str, Any], resolution: int) -> Kept:
    """What one picture of `resolution` squared takes with its caption."""
    channels = config["dim"] * (config["n_layers"] + 2 * config["n_refiner_layers"])
    return kept_by_tokens(resolution, _TEXT_TOKENS, channels, _BYTES)
