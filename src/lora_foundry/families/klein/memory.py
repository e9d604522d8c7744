"""What a training of FLUX.2 Klein takes of a GPU's memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lora_foundry.families._shared.memory import Kept, kept_by_tokens

# Bytes a token, a channel and a layer, with a LoRA on every attention and feed-forward layer: counted on the meta
# device, with all activations kept and with gradient checkpointing.
_BYTES = 51.5, 5.2
_TEXT_TOKENS = 512


def kept(config: Mapping[str, Any], resolution: int) -> Kept:
    """What one picture of `resolution` squared takes with its caption."""
    width = config["num_attention_heads"] * config["attention_head_dim"]
    channels = width * (config["num_layers"] + config["num_single_layers"])
    return kept_by_tokens(resolution, _TEXT_TOKENS, channels, _BYTES)
