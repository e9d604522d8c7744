"""What the child process does that draws one picture of a set again: the same shot, another seed, everything else as the set
was drawn, so that the stages take the picture for one of theirs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from lora_foundry.composition import RecipePorts
from lora_foundry.domain.dataset import GenerationMetadata
from lora_foundry.domain.run import Run
from lora_foundry.errors import InputError
from lora_foundry.families._shared.inspect import recipe_base
from lora_foundry.files.paths import RunPaths
from lora_foundry.files.storage import require_model
from lora_foundry.settings import Settings
from lora_foundry.stages._shared.drawing import ShotAttempt, context_of, make_pictures

ENTRY = "lora_foundry.redraw_job:run"


class RedrawWork(BaseModel):
    """All that a child needs to know. `shot`: its number from 0; `attempt`: how often it was drawn before; `target`: where
    the new picture goes."""

    run: Run
    shot: int
    attempt: int
    target: Path
    settings: Settings


def run(work: dict[str, Any], tell: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Draws the picture. Raises InputError where the set has no such shot, and what drawing raises."""
    job = RedrawWork.model_validate(work)
    paths = RunPaths(job.run.dataset_dir, job.run.character.slug)
    made = require_model(paths.generation_metadata, GenerationMetadata, "generate")
    ports = RecipePorts(job.run.recipe, recipe_base(job.run.recipe, job.settings.model_folders), job.settings)
    try:
        context = context_of(job.run, ports, made)
        plan = context.plan(job.run)
        if job.shot >= len(plan.shots):
            raise InputError("The plan of this run has no such picture any more.")
        batch = [ShotAttempt(job.shot, job.attempt)]
        return {"pictures": sum(1 for _ in make_pictures(context, plan, [batch], lambda attempt: job.target))}
    finally:
        ports.close()
