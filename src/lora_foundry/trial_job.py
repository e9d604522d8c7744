"""What the child process of a trial does: draws one prompt without and with a finished LoRA, as the recipe would."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from lora_foundry.composition import RecipePorts
from lora_foundry.domain.lora import LoraUse
from lora_foundry.domain.recipe import Recipe
from lora_foundry.domain.trial import SIDES, Trial
from lora_foundry.families._shared.inspect import recipe_base
from lora_foundry.files.paths import TrialPaths
from lora_foundry.files.storage import write_aside
from lora_foundry.settings import Settings

ENTRY = "lora_foundry.trial_job:run"


class TrialWork(BaseModel):
    """All that a child needs to know."""

    trial: Trial
    recipe: Recipe
    lora: Path
    folder: Path
    settings: Settings


def run(work: dict[str, Any], tell: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Draws every picture of the trial into its folder; returns how many there are."""
    job = TrialWork.model_validate(work)
    base = recipe_base(job.recipe, job.settings.model_folders)
    ports = RecipePorts(job.recipe, base, job.settings)
    paths, requests = TrialPaths(job.folder), job.trial.requests(job.recipe)
    done = 0
    try:
        for side in SIDES:
            lora = LoraUse(path=job.lora, strength=job.trial.strength) if side == "after" else None
            for made in ports.generator.generate([requests], lora):
                target = paths.picture(side, int(made.request.key))
                write_aside(target, partial(made.image.save, format="PNG"))
                done += 1
    finally:
        ports.close()
    return {"pictures": done}
