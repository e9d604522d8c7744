"""Several characters in one LoRA: each member is a character with a set of its own, drawn or brought; one training takes
them all, so every member needs a trigger word that no other's prompt could say by accident."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, permutations
from typing import Literal

from pydantic import BaseModel, ConfigDict

from lora_foundry.domain.character import Character
from lora_foundry.errors import InputError

FEWEST, MOST = 2, 6


class Member(BaseModel):
    """One of the characters. source: where its pictures come from, as `dataset.source` has it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    character: Character
    source: Literal["auto", "described", "reference", "own", "mixed"] = "auto"


def check_members(members: Sequence[Member]) -> None:
    """Raises InputError for too few or too many members, and for names or triggers that would be taken for another's."""
    if not FEWEST <= len(members) <= MOST:
        raise InputError(f"A cast has {FEWEST} to {MOST} characters; this one has {len(members)}.")
    for one, other in combinations([each.character for each in members], 2):
        if one.slug == other.slug:
            raise InputError(
                f"Two characters of the cast are called {one.name!r}; give each a name of its own."
            )
    for one, other in permutations([each.character for each in members], 2):
        if f" {one.trigger.lower()} " in f" {other.trigger.lower()} ":
            raise InputError(
                f"The trigger {one.trigger!r} of {one.name} is part of {other.name}'s trigger {other.trigger!r}, so that one "
                "would call both; set other triggers."
            )
