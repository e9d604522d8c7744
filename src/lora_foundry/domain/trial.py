"""A prompt that a person tries with a finished LoRA: the same prompt and seeds without it and with it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime
from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field

from lora_foundry.domain.dataset import ImageRequest
from lora_foundry.domain.picture_plan import request_of
from lora_foundry.domain.recipe import Recipe

SIDES = ("before", "after")


class TrialState(StrEnum):
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"


class Rival(BaseModel):
    """Another LoRA that draws the same: the run that made it, what it is called, and the word that calls its character."""

    model_config = ConfigDict(frozen=True)

    pipeline: str
    name: str
    trigger: str
    strength: float


class Trial(BaseModel):
    """What was asked, and what became of it. `seeds` are the pictures' own; `rivals` draw them too; `error` says why there are
    none. trigger: the word of the run's own character, in whose place a rival's own stands in its prompt."""

    model_config = ConfigDict(frozen=True)

    id: str
    prompt: str
    negative: str
    strength: float
    seeds: tuple[int, ...] = Field(min_length=1)
    rivals: tuple[Rival, ...] = ()
    trigger: str = ""
    made_at: datetime
    state: TrialState = TrialState.RUNNING
    error: str = ""

    def requests(self, recipe: Recipe, rival: Rival | None = None) -> list[ImageRequest]:
        """The pictures of one side, drawn as the recipe draws its set; with a rival's trigger word for the rival."""
        prompt = self.prompt
        if rival is not None and self.trigger:
            prompt = _whole(self.trigger).sub(lambda _: rival.trigger, prompt)
        return [
            request_of(recipe.generate, str(number), prompt, seed, self.negative)
            for number, seed in enumerate(self.seeds)
        ]


def called(prompt: str, triggers: Sequence[str]) -> str:
    """The trigger word that a prompt says, of a LoRA that has several; the first where it says none."""
    return next((each for each in triggers if _whole(each).search(prompt)), triggers[0])


def _whole(trigger: str) -> re.Pattern[str]:
    return re.compile(rf"\b{re.escape(trigger)}\b", re.IGNORECASE)


def rival_side(number: int) -> str:
    """How the pictures of a rival are called."""
    return f"other-{number + 1}"
