"""Prompts of Z-Image: sentences to Qwen3."""

from __future__ import annotations

from typing import Any

from lora_foundry.families._shared.base import Base
from lora_foundry.families._shared.qwen import ChatPrompts


def make_prompts(pipeline: Any, base: Base) -> ChatPrompts:
    """The prompts of a loaded pipeline."""
    return ChatPrompts(pipeline.tokenizer, pipeline.text_encoder)
