"""Recipe section [dataset]: where the training pictures come from. Every field's description is its documentation."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from lora_foundry.domain.sections.base import Section

Source = Literal["described", "reference", "own", "mixed"]
Framing = Literal["face", "upper_body"]


class DatasetSection(Section):
    """[dataset]: where the training pictures come from."""

    source: Literal["auto", "described", "reference", "own", "mixed"] = Field(
        "auto",
        description="`described`: drawn from the description; `reference`: drawn after the reference image; `own`: only "
        "the pictures that stand in images/, none drawn; `mixed`: these beside drawn ones. `auto` draws, after the "
        "reference image where there is one, and takes what stands in images/ as well.",
    )
    crops: tuple[Framing, ...] = Field(
        (),
        description="Copies of own pictures, cut around the one face that the detector finds, trained beside them under "
        "captions that name the framing. Needs `model.detector`.",
    )
    min_side: int = Field(
        0,
        ge=0,
        description="Own pictures whose shorter side has fewer pixels are reported as too small; 0 takes half of "
        "`train.resolution`.",
    )
