"""Recipe section [caption]: what the trainer is told. Every field's description is its documentation."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from lora_foundry.domain.sections.base import Section


class CaptionSection(Section):
    """[caption]: what the trainer is told about each picture."""

    backend: Literal["plan"] = Field(
        "plan", description="Where captions come from: `plan` is what was asked for."
    )
    prune_identity: bool = Field(
        description="Leave the character's features out of captions, so that the trigger word "
        "alone learns to stand for them."
    )
    keep: tuple[str, ...] = Field(
        (), description="Features that are never pruned, such as accessories to swap."
    )
    scene: tuple[Literal["angle", "lighting", "background"], ...] = Field(
        ("angle", "lighting", "background"),
        description="Parts of the shot that captions name after pose and expression.",
    )
    quality_tags: tuple[str, ...] = Field(description="Tags that close every caption.")
