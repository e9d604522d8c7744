"""What a person is offered first on the page of a new character: not the miniature model that tests everything, where this
machine has a real base, or a GPU for which one can be had."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from pydantic import BaseModel, Field

from lora_foundry.domain.recipe import Recipe
from lora_foundry.families._shared.inspect import BUNDLED
from lora_foundry.settings import Settings
from lora_foundry.web.bases import BaseView
from lora_foundry.web.setups import NeedView, Readiness

_FREE = ("Apache-2.0", "MIT")  # whoever chooses nothing should not have agreed to more


class Suggestion(BaseModel):
    """A recipe to begin with."""

    recipe: str
    base: str = Field(default="", description="A base of this machine for it; else the recipe's own.")
    why: str


class Candidate(NamedTuple):
    """A recipe and what of it is on this machine."""

    recipe: Recipe
    ready: Readiness

    @property
    def missing(self) -> list[NeedView]:
        return [need for need in self.ready.needs if need.found is None]

    @property
    def lacks_base(self) -> bool:
        return any(need.what.startswith("base model") for need in self.missing)


def suggest(
    settings: Settings, candidates: Sequence[Candidate], bases: Sequence[BaseView], has_gpu: bool
) -> Suggestion:
    """What the settings say; else a recipe whose base is here; else one for a base that is here; else, with a GPU, one whose
    base can be had under a free licence; else the bundled miniature."""
    usual = settings.recipe
    if usual != Settings.model_fields["recipe"].default:
        return Suggestion(recipe=usual, why="The settings of this machine name it.")
    real = sorted(
        (
            each
            for each in candidates
            if each.recipe.model.base != BUNDLED and each.recipe.dataset.source != "own"
        ),
        key=lambda each: (len(each.missing), each.ready.recipe),
    )
    for each in real:
        if not each.lacks_base:
            name = each.recipe.model.base.rpartition("/")[2]
            return Suggestion(recipe=each.ready.recipe, why=f"Its base model, {name}, is on this machine.")
    for base in bases:
        for each in real:
            if (
                base.family == each.ready.family
                and base.family != BUNDLED
                and not each.recipe.model.train_base
            ):
                why = f"{base.name} is on this machine, and this recipe is made for bases of its kind."
                return Suggestion(recipe=each.ready.recipe, base=base.name, why=why)
    if has_gpu and (fetched := [each for each in real if each.ready.fetchable]):
        first = min(fetched, key=lambda each: (_restricted(each), len(each.missing), each.ready.recipe))
        why = "This machine has a GPU; the base model can be downloaded and used freely."
        return Suggestion(recipe=first.ready.recipe, why=why)
    why = (
        "It only tries everything out in minutes, with a model that draws tiny pictures: no real base model and no GPU were "
        "found on this machine."
    )
    return Suggestion(recipe=usual, why=why)


def _restricted(candidate: Candidate) -> int:
    """How many of the files that are missing have a licence with conditions."""
    return sum(need.licence not in _FREE for need in candidate.missing)
