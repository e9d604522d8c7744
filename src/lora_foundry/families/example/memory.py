"""What a training takes of a GPU's memory beside weights, LoRA and optimizer, which are counted from the configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lora_foundry.families._shared.memory import Kept

# Bytes a token, a channel and a layer in 16 bits; a case in tests/unit/families/test_memory.py counts a real family's.
_WHOLE, _CHECKPOINTED = 30.0, 4.0
_TEXT_TOKENS = 77
_PIXELS = 8  # a token's side


def kept(config: Mapping[str, Any], resolution: int) -> Kept:
    """What one picture of `resolution` squared takes; `config` is the network's."""
    tokens = (resolution // _PIXELS) ** 2 + _TEXT_TOKENS
    size = tokens * config["width"] * config["num_layers"]
    return Kept(int(_WHOLE * size), int(_CHECKPOINTED * size))
