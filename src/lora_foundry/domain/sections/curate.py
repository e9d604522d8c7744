"""Recipe section [curate]: which pictures are kept. Every field's description is its documentation."""

from __future__ import annotations

from pydantic import Field

from lora_foundry.domain.sections.base import Section, Share


class CurateSection(Section):
    """[curate]: which pictures are good enough to train on."""

    min_sharpness: float = Field(
        0.0, ge=0, description="Least variance of the Laplacian (0-255 grey); below is blurred."
    )
    min_contrast: float = Field(
        4.0, ge=0, description="Least standard deviation of grey levels; below is blank."
    )
    duplicate_distance: int = Field(
        0,
        ge=0,
        le=64,
        description="Most differing bits of the 64-bit difference hash at "
        "which two pictures of the set count as duplicates.",
    )
    duplicate_difference: float = Field(
        0.02,
        ge=0,
        le=2,
        description="Most difference (1 minus the correlation of grey levels at 32 px) of two such pictures; "
        "it tells simple drawings apart whose hashes are alike.",
    )
    check_traits: bool = Field(
        False,
        description="Reject pictures in which the tagger sees less than "
        "`min_traits` of the described traits.",
    )
    min_traits: Share = Field(
        0.75, description="Least share of described traits seen, where `check_traits` is on."
    )
    budget: float = Field(
        2.0, ge=1, le=10, description="Most pictures made in all, as a multiple of `images`."
    )
