"""Recipe section [publish]: where a LoRA goes. Every field's description is its documentation."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from lora_foundry.domain.sections.base import Section
from lora_foundry.registry import OneOf


class PublishSection(Section):
    """[publish]: where a proven LoRA goes."""

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
