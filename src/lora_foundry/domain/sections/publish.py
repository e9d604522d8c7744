"""Recipe section [publish]: where a LoRA goes. Every field's description is its documentation."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from lora_foundry.domain.sections.base import Section


class PublishSection(Section):
    """[publish]: where a proven LoRA goes."""

    backend: Literal["folder"] = Field(
        "folder", description="How it is installed: copied to the LoRA folder."
    )
    verify: Literal["auto", "comfyui", "none"] = Field(
        "auto",
        description="Which program must load the LoRA and draw with it before it is installed; `auto` asks ComfyUI "
        "where it also made the pictures.",
    )
    min_change: float = Field(
        1.0,
        ge=0,
        description="Least mean difference of grey levels (0-255) that the LoRA must "
        "make to a picture of the same seed.",
    )
