"""Recipe section [evaluate]: how a LoRA is measured. Every field's description is its documentation."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from lora_foundry.domain.sections.base import Section, Share


class EvaluateSection(Section):
    """[evaluate]: held-out prompts and seeds on which the LoRA is measured."""

    prompts: Annotated[int, Field(ge=1, le=500)] = Field(
        12, description="Held-out shots, drawn like the plan from another seed, on which both are measured."
    )
    seeds: Annotated[int, Field(ge=1, le=50)] = Field(2, description="Seeds a prompt.")
    strength: float = Field(1.0, gt=0, le=2, description="Strength at which the LoRA is measured.")
    min_identity: Share = Field(
        0.0, description="Least identity for publishing; below, the run ends without it."
    )
