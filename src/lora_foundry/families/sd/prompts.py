"""Prompts of Stable Diffusion 1.x and 2.x: one CLIP text encoder."""

from __future__ import annotations

from typing import Any

from lora_foundry.families._shared.base import Base
from lora_foundry.families._shared.prompts import PromptEncoder


def make_prompts(pipeline: Any, base: Base) -> PromptEncoder:
    """The prompts of a loaded pipeline."""
    return PromptEncoder(pipeline.tokenizer, pipeline.text_encoder, base.clip_skip)
