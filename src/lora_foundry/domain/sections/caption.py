"""Recipe section [caption]: what the trainer is told. Every field's description is its documentation."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from lora_foundry.domain.sections.base import Affects, Section, Share
from lora_foundry.registry import OneOf


class CaptionSection(Section):
    """[caption]: what the trainer is told about each picture."""

    AFFECTS: ClassVar[Affects] = "captions"

    look: tuple[Annotated[str, OneOf("captioner")], ...] = Field(
        (), description="What looks at each picture; what it sees beats what was asked for."
    )
    identity_share: Share = Field(
        0.35,
        description="Features seen in at least this share of the set are taken for the character's own, and pruned or "
        "kept with it; rarer ones are said of the pictures that show them.",
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
    kept: Literal["with_trigger", "as_written"] = Field(
        "with_trigger",
        description="How captions that a person has written are trained on: with the trigger word, put in where they lack "
        "it and in the place of an earlier one, or exactly as they stand. Their files are never changed.",
    )
    quality_tags: tuple[str, ...] = Field(description="Tags that close every caption.")
