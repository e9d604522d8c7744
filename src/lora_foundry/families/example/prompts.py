"""What a prompt becomes for the network: here the states of one CLIP text encoder. See `_shared/qwen.py` for a language
model."""

from __future__ import annotations

from typing import Any

from lora_foundry.families._shared.base import Base
from lora_foundry.families._shared.prompts import PromptEncoder


def make_prompts(pipeline: Any, base: Base) -> PromptEncoder:
    """The prompts of a loaded pipeline; `arguments` of what is returned are the pipeline's own."""
    return PromptEncoder(pipeline.tokenizer, pipeline.text_encoder)
