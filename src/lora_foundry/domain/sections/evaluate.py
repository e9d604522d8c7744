"""Recipe section [evaluate]: how a LoRA is measured. Every field's description is its documentation."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from lora_foundry.domain.sections.base import NOTHING, Affects, Section, Share


class EvaluateSection(Section):
    """[evaluate]: held-out prompts and seeds on which the LoRA is measured."""

    AFFECTS: ClassVar[Affects] = "scores"

    prompts: Annotated[int, Field(ge=1, le=500)] = Field(
        12, description="Held-out shots, drawn like the plan from another seed, on which both are measured."
    )
    seeds: Annotated[int, Field(ge=1, le=50)] = Field(2, description="Seeds a prompt.")
    strength: float = Field(1.0, gt=0, le=2, description="Strength at which the LoRA is measured.")
    subject: Literal["character", "style"] = Field(
        "character",
        description="What the LoRA is to draw. A style may show without the trigger word, too, and is judged by its likeness "
        "to the training pictures.",
    )
    min_identity: Share = Field(
        0.0,
        description="Least identity for publishing; below, the run ends without it.",
        json_schema_extra=NOTHING,
    )
    choose: bool = Field(
        True,
        description="Choose among the checkpoints in training/saved/ by measurement; else the last one is taken.",
    )
    step: int = Field(
        0,
        ge=0,
        description="Take the checkpoint of this step, at `strength`, whatever the measurement says; 0 goes by it.",
    )
    strengths: tuple[Annotated[float, Field(gt=0, le=2)], ...] = Field(
        (), description="Strengths tried with each checkpoint; none tries `strength` alone."
    )
    choice_prompts: Annotated[int, Field(ge=1, le=100)] = Field(
        6,
        description="Further held-out shots, one seed each, on which checkpoints and strengths are compared; where half of "
        "them settle it, the rest is not drawn.",
    )
    beta: float = Field(
        1.0,
        gt=0,
        le=10,
        description="How many times as important identity is as adherence in that comparison (F-beta).",
    )
    min_sound: Share = Field(
        0.8,
        description="Least share of pictures that are neither blank nor blurred for a checkpoint to be chosen.",
    )
    more_training: Annotated[int, Field(ge=0, le=5)] = Field(
        1,
        description="How often a LoRA below `min_identity` is trained again with half as many steps more, before the "
        "run ends without publishing.",
        json_schema_extra=NOTHING,
    )
