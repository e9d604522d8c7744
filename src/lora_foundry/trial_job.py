"""What the child process of a trial does: draws one prompt without and with a finished LoRA, as the recipe would."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from lora_foundry.composition import RecipePorts
from lora_foundry.domain.dataset import ImageRequest
from lora_foundry.domain.lora import LoraUse
from lora_foundry.domain.recipe import Recipe
from lora_foundry.domain.trial import SIDES, Trial, rival_side
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
    rivals: tuple[Path, ...] = ()
    folder: Path
    settings: Settings


def run(work: dict[str, Any], tell: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Draws every picture of the trial into its folder; returns how many there are."""
    job = TrialWork.model_validate(work)
    base = recipe_base(job.recipe, job.settings.model_folders)
    ports = RecipePorts(job.recipe, base, job.settings)
    paths, done = TrialPaths(job.folder), 0
    before, after = SIDES
    own = job.trial.requests(job.recipe)
    sides: list[tuple[str, LoraUse | None, list[ImageRequest]]] = [
        (before, None, own),
        (after, LoraUse(path=job.lora, strength=job.trial.strength), own),
    ]
    for number, (rival, file) in enumerate(zip(job.trial.rivals, job.rivals, strict=True)):
        use = LoraUse(path=file, strength=rival.strength)
        sides.append((rival_side(number), use, job.trial.requests(job.recipe, rival)))
    try:
        for side, lora, requests in sides:
            for made in ports.generator.generate([requests], lora):
                target = paths.picture(side, int(made.request.key))
                write_aside(target, partial(made.image.save, format="PNG"))
                done += 1
    finally:
        ports.close()
    return {"pictures": done}
