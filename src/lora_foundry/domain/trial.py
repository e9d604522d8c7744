"""A prompt that a person tries with a finished LoRA: the same prompt and seeds without it and with it."""

from __future__ import annotations

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


class Trial(BaseModel):
    """What was asked, and what became of it. `seeds` are the pictures' own; `error` says why there are none."""

    model_config = ConfigDict(frozen=True)

    id: str
    prompt: str
    negative: str
    strength: float
    seeds: tuple[int, ...] = Field(min_length=1)
    made_at: datetime
    state: TrialState = TrialState.RUNNING
    error: str = ""

    def requests(self, recipe: Recipe) -> list[ImageRequest]:
        """The pictures of one side, drawn as the recipe draws its set."""
        return [
            request_of(recipe.generate, str(number), self.prompt, seed, self.negative)
            for number, seed in enumerate(self.seeds)
        ]
