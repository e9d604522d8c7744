"""Drawing one picture of a set again with another seed, in a child process of the server: one at a time, and not while a worker
draws or trains."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Literal

from pydantic import BaseModel

from lora_foundry.domain.run import Run
from lora_foundry.errors import FoundryError, InputError, RetryableError
from lora_foundry.files.images import read_record
from lora_foundry.files.paths import RunPaths
from lora_foundry.files.storage import make_folder, remove_file
from lora_foundry.redraw_job import ENTRY, RedrawWork
from lora_foundry.settings import Settings
from lora_foundry.tasks.children import Child, Job, run_alone
from lora_foundry.web import set_history
from lora_foundry.web.dataset import in_set, picture_files

TIMEOUT = 1800.0
HEARTBEAT, PATIENCE = 2.0, 8.0  # as in trials


class Redraw(BaseModel):
    """A picture that is drawn again. `error` says why the old one is still there."""

    file: str
    state: Literal["running", "completed", "failed"] = "running"
    error: str = ""


class Redraws:
    """The newest of each set; at most one is under way."""

    def __init__(self, edits: asyncio.Lock) -> None:
        self._edits = edits
        self._states: dict[Path, Redraw] = {}  # by the set's folder
        self._running: asyncio.Task[None] | None = None

    @property
    def busy(self) -> bool:
        return self._running is not None

    def state(self, paths: RunPaths) -> Redraw | None:
        """What became of the last one of a set."""
        return self._states.get(paths.root)

    def start(self, settings: Settings, run: Run, paths: RunPaths, file: str) -> Redraw:
        """Begins to draw; returns at once. Raises InputError for a picture that was not drawn here, RetryableError while
        another is drawn."""
        if self.busy:
            raise RetryableError("Another picture is being drawn; wait until it is there.")
        shot, attempt = _next(paths, file)
        target = make_folder(paths.edits) / "drawn.png"
        run = run.model_copy(update={"dataset_dir": paths.root})  # the home may have been moved since
        work = RedrawWork(run=run, shot=shot, attempt=attempt, target=target, settings=settings).model_dump(
            mode="json"
        ) | {"settings": settings.for_child()}
        log = settings.home.expanduser().absolute() / "logs" / "redraws.log"
        child, job = Child(log, lambda event: None), Job(ENTRY, work, PATIENCE, TIMEOUT)
        self._states[paths.root] = Redraw(file=file)
        self._running = asyncio.create_task(self._draw(child, job, paths, file))
        return self._states[paths.root]

    async def _draw(self, child: Child, job: Job, paths: RunPaths, file: str) -> None:
        error = "The server was stopped meanwhile; try it again."
        try:
            outcome = await run_alone(child, job, HEARTBEAT)
            error = outcome.error
            if not error:
                async with self._edits:
                    await asyncio.to_thread(set_history.put_picture, paths, file, paths.edits / "drawn.png")
        except FoundryError as problem:
            error = str(problem)
        finally:
            self._running = None
            remove_file(paths.edits / "drawn.png")
            self._states[paths.root] = Redraw(
                file=file, state="failed" if error else "completed", error=error
            )

    async def finish(self) -> None:
        """Ends what is under way, child and all."""
        if self._running is not None:
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)


def _next(paths: RunPaths, file: str) -> tuple[int, int]:
    """The shot of a picture, and the number of an attempt that nobody has made. Raises InputError."""
    picture = in_set(paths, file)
    number = re.fullmatch(rf"{re.escape(paths.slug)}_(\d+)\.png", file)
    record = read_record(picture.path)
    if not picture.generated or number is None or record is None:
        raise InputError(f"{file} was not drawn here, so it has no seed to change.")
    shot = int(number[1]) - 1
    others = [
        *picture_files(paths.rejected),
        *(path for path in paths.edits.glob("*/*.png") if path.name == file),
    ]
    tried = [found.attempt for path in others if (found := read_record(path)) and found.file == file]
    return shot, max([record.attempt, *tried]) + 1
