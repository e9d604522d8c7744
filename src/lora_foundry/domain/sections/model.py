"""Recipe section [model]: the base model and the instruments. Every field's description is its documentation."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from lora_foundry.domain.sections.base import Section


class ModelSection(Section):
    """[model]: the base model and the instruments that look at pictures."""

    base: str = Field(
        description="Base model: `mini` (bundled), a diffusers folder, or one .safetensors file; a bare "
        "file name is looked for in the models folder and in ComfyUI's checkpoints folder."
    )
    tagger: Literal["mini", "none"] = Field(
        description="Instrument that reads visible traits; `none` leaves identity and adherence unmeasured."
    )
    embedder: Literal["mini", "none"] = Field(
        description="Instrument that tells characters apart by their looks."
    )
    detector: Literal["none", "yunet"] = Field(
        "none",
        description="Instrument that counts the faces of a picture; `none` rejects no picture for them.",
    )
