"""Recipe section [publish]: where a LoRA goes. Every field's description is its documentation."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from lora_foundry.domain.sections.base import SCORES, Affects, Section
from lora_foundry.registry import OneOf


class PublishSection(Section):
    """[publish]: where a proven LoRA goes."""

    AFFECTS: ClassVar[Affects] = "nothing"

    backend: Annotated[str, OneOf("publisher")] = Field("folder", description="How it is installed.")
    verify: Annotated[str, OneOf("prover", also=("auto", "none"))] = Field(
        "auto",
        description="Which program must load the LoRA and draw with it before it is installed; `auto` asks the program "
        "that also made the pictures, where it can be asked.",
    )
    min_change: float = Field(
        1.0,
        ge=0,
        description="Least mean difference of grey levels (0-255) that the LoRA must "
        "make to a picture of the same seed.",
    )
    metadata: Literal["full", "minimal"] = Field(
        "full",
        description="What a LoRA and its card say of their making: `full`, with description, tags and recipe, but never a "
        "local path; or `minimal`, only what a program needs to load and call it.",
        json_schema_extra=SCORES,
    )
