"""What the child process of a task does: the stages of that task, in the run's folder, one process at a time. It
stands above the engine, which knows it by name only, since it joins stages to backends as the foundry does."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from lora_foundry.composition import do_stages
from lora_foundry.domain.run import ProgressEvent, Run
from lora_foundry.errors import FolderBusyError, InputError
from lora_foundry.families._shared.inspect import recipe_base
from lora_foundry.files.locks import FolderLock, claim
from lora_foundry.files.paths import RunPaths
from lora_foundry.files.storage import make_folder
from lora_foundry.pipeline import Stage
from lora_foundry.remote.keeper import Keeper, RunStorage
from lora_foundry.remote.manifests import Fence
from lora_foundry.remote.objects import ObjectStore
from lora_foundry.settings import Settings
from lora_foundry.tasks.logs import speak_of

logger = logging.getLogger(__name__)
LOCK_PATIENCE = 30.0
ENTRY = "lora_foundry.stage_job:run"
PRELOAD = ("lora_foundry.stage_job", "torch")  # what every pipeline needs and takes seconds to import


class StageWork(BaseModel):
    """All that a child needs to know. attempt: which one it is, where hosts share a storage and no folder."""

    run: Run
    stages: tuple[str, ...]
    settings: Settings
    attempt: Fence | None = None


def run(work: dict[str, Any], tell: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Runs the stages; returns what each one left and the seconds it took."""
    job = StageWork.model_validate(work)
    paths = RunPaths(job.run.dataset_dir, job.run.character.slug)
    make_folder(job.run.dataset_dir)
    base = recipe_base(job.run.recipe, job.settings.model_folders)
    keeper = _keeper(job)

    def progress(event: ProgressEvent) -> None:
        if keeper is not None:
            keeper.look()
        tell({"progress": event.model_dump(mode="json")})

    def begins(stage: Stage) -> None:
        speak_of(stage=stage.name)
        logger.info("Stage %s of %s begins", stage.name, job.run.character.name)

    def finished(stage: Stage, result: BaseModel, seconds: float) -> None:
        logger.info("Stage %s of %s is done", stage.name, job.run.character.name)

    with ExitStack() as stack:
        stack.push(_wait_for(paths.lock))
        if keeper is None:
            claim(paths, job.run)
        else:
            stack.enter_context(keeper)
        seconds = do_stages(job.run, base, job.settings, progress, finished, begins=begins, names=job.stages)
    moved = {} if keeper is None else {"storage": keeper.traffic.model_dump()}
    return {
        "stages": {name: {"seconds": taken} for name, taken in seconds.items()},
        "dataset_dir": str(job.run.dataset_dir),
        "output_name": job.run.output_name,
        "lora_dir": str(job.run.lora_dir),
        **moved,
    }


def _keeper(job: StageWork) -> Keeper | None:
    """Who stores what the stages make, where hosts share a storage."""
    if not job.settings.storage or job.attempt is None:
        return None
    return Keeper(RunStorage(ObjectStore(job.settings.storage), job.run, job.settings), job.attempt)


def _wait_for(lock: Path) -> FolderLock:
    """The folder's lock, held; a process that is being killed may keep it a moment longer."""
    until = time.monotonic() + LOCK_PATIENCE
    while True:
        try:
            return FolderLock(lock).__enter__()
        except InputError as error:
            if time.monotonic() > until:
                raise FolderBusyError(str(error)) from error
            time.sleep(0.3)
