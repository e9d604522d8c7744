"""What an attempt's child does: the stages of one task, in the run's folder, one process at a time."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from lora_foundry.bases.inspect import find_base
from lora_foundry.domain.run import ProgressEvent, Run
from lora_foundry.errors import BackendError, InputError
from lora_foundry.locks import FolderLock, claim
from lora_foundry.paths import RunPaths
from lora_foundry.pipeline import PIPELINE
from lora_foundry.settings import Settings
from lora_foundry.storage import make_folder

LOCK_PATIENCE = 30.0
PORTS = "lora_foundry.foundry:RecipePorts"


class StageWork(BaseModel):
    """All that a child needs to know."""

    run: Run
    stages: tuple[str, ...]
    settings: Settings


def run(work: dict[str, Any], tell: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Runs the stages; returns what each one left and the seconds it took."""
    job = StageWork.model_validate(work)
    paths = RunPaths(job.run.dataset_dir, job.run.character.slug)
    make_folder(job.run.dataset_dir)
    module, _, name = PORTS.partition(":")
    base = find_base(job.run.recipe.model.base, job.settings.model_folders)
    results: dict[str, Any] = {}

    def progress(event: ProgressEvent) -> None:
        tell({"progress": event.model_dump(mode="json")})

    with ExitStack() as stack:
        stack.push(_wait_for(paths.lock))
        claim(paths, job.run)
        ports = getattr(import_module(module), name)(job.run.recipe, base, job.settings)
        stack.callback(ports.close)
        for stage in PIPELINE:
            if stage.name in job.stages:
                started = time.perf_counter()
                stage.load()(job.run, ports, progress)
                results[stage.name] = {"seconds": round(time.perf_counter() - started, 3)}
    return {
        "stages": results,
        "dataset_dir": str(job.run.dataset_dir),
        "output_name": job.run.output_name,
        "lora_dir": str(job.run.lora_dir),
    }


def _wait_for(lock: Path) -> FolderLock:
    """The folder's lock, held; a process that is being killed may keep it a moment longer."""
    until = time.monotonic() + LOCK_PATIENCE
    while True:
        try:
            return FolderLock(lock).__enter__()
        except InputError as error:
            if time.monotonic() > until:
                raise BackendError(str(error)) from error
            time.sleep(0.3)
