"""How much GPU memory a training takes, by its family's own count, which a child process makes: each recipe is counted once,
one at a time."""

from __future__ import annotations

import asyncio
from collections import OrderedDict

from pydantic import BaseModel

from lora_foundry.domain.recipe import Recipe
from lora_foundry.errors import BackendError
from lora_foundry.memory_job import ENTRY, MemoryWork
from lora_foundry.settings import Settings
from lora_foundry.tasks.children import Child, Job, run_alone

_TIMEOUT = 120.0
_HEARTBEAT, _PATIENCE = 2.0, 8.0  # as in trials
_MOST = 200


class MemoryEstimate(BaseModel):
    """Bytes of GPU memory at the peak of a training: as the recipe is set, and where it is made as small as it can be on
    this computer, which takes longer."""

    as_set: int
    least: int


class MemoryEstimates:
    """What was counted already."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, MemoryEstimate] = OrderedDict()
        self._one = asyncio.Lock()

    async def of(self, recipe: Recipe, settings: Settings) -> MemoryEstimate:
        """Raises BackendError where it cannot be counted, as for a base that is not here."""
        key = recipe.model.model_dump_json() + recipe.train.model_dump_json()
        async with self._one:
            if key not in self._known:
                self._known[key] = await _count(recipe, settings)
                if len(self._known) > _MOST:
                    self._known.popitem(last=False)
            return self._known[key]


async def _count(recipe: Recipe, settings: Settings) -> MemoryEstimate:
    log = settings.home.expanduser().absolute() / "logs" / "memory.log"
    work = MemoryWork(recipe=recipe, settings=settings).model_dump(mode="json") | {
        "settings": settings.for_child()
    }
    outcome = await run_alone(
        Child(log, lambda event: None), Job(ENTRY, work, _PATIENCE, _TIMEOUT), _HEARTBEAT
    )
    if outcome.result is None:
        raise BackendError(outcome.error or "The memory could not be counted.")
    return MemoryEstimate.model_validate(outcome.result)
