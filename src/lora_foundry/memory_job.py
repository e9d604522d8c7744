"""What the child process does that estimates a training's memory: the family's own count needs torch, which a server does not
load."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydantic import BaseModel

from lora_foundry.domain.recipe import Recipe
from lora_foundry.families._shared.inspect import recipe_base
from lora_foundry.settings import Settings

ENTRY = "lora_foundry.memory_job:run"


class MemoryWork(BaseModel):
    """All that a child needs to know."""

    recipe: Recipe
    settings: Settings


def run(work: dict[str, Any], tell: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Bytes that the training takes at its peak: `as_set`, and at `least`, where it is made as small as it can be on this
    computer with an NVIDIA GPU. Raises what finding the base raises."""
    from lora_foundry.families._shared.devices import total_memory
    from lora_foundry.families._shared.memory import smallest, training_memory, usual_means

    job = MemoryWork.model_validate(work)
    base = recipe_base(job.recipe, job.settings.model_folders, training=True)
    train = job.recipe.train
    least = smallest(train, base, usual_means(base, train, total_memory()))
    as_set = training_memory(base, train)
    return {"as_set": as_set, "least": min(as_set, training_memory(base, least))}
