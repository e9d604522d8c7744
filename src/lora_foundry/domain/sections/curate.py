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
    identity: bool = Field(
        True,
        description="Reject pictures of somebody else: those unlike the most cohesive cluster of the set (or the "
        "reference image), as `model.embedder` sees them. Without an embedder nothing is checked.",
    )
    core: Share = Field(
        0.25,
        description="Share of the pictures that makes up the cluster whose mean is taken for the character.",
    )
    min_likeness: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Least cosine of a picture with that mean; 0 takes the value that the embedder is known to need.",
    )
    fill: Share = Field(
        1.0,
        description="Least share of the plan that the set holds when the budget is spent; the gaps are filled with "
        "the best of the rejected pictures. 1 keeps a picture for every shot.",
    )
    budget: float = Field(
        2.0, ge=1, le=10, description="Most pictures made in all, as a multiple of `images`."
    )
