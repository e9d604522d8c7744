"""A pipeline that somebody waits for: submitted to the table like any other, followed to its end, and run by a worker
in this process where no other is alive."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from lora_foundry.domain.run import ProgressEvent
from lora_foundry.domain.task import ENDED, WAITING
from lora_foundry.settings import Settings
from lora_foundry.tasks import pipelines, recovery
from lora_foundry.tasks.arranging import is_paused
from lora_foundry.tasks.pipelines import Pipeline, PipelineRequest, StageState
from lora_foundry.tasks.store import TaskStore
from lora_foundry.tasks.waiting import waits_until
from lora_foundry.tasks.worker import Worker, WorkerOptions

LOOK = 0.3
SERVED = 2.0
ASKED = 1.0  # seconds between two looks for what a stage waits for


@dataclass
class Watcher:
    """Who is told of a pipeline's news: of what a stage waits for, its beginning, progress and end, of what goes wrong
    meanwhile, and, when the wait is broken off, of the stage that a worker here has yet to bring to a safe place."""

    progress: Callable[[ProgressEvent], None] = lambda event: None
    finished: Callable[[str, float], None] = lambda stage, seconds: None
    trouble: Callable[[StageState], None] = lambda stage: None
    begins: Callable[[str], None] = lambda stage: None
    stopping: Callable[[str], None] = lambda stage: None
    waits: Callable[[str, str], None] = lambda stage, words: None
    _seen: dict[str, object] = field(default_factory=dict)

    def look(self, pipeline: Pipeline) -> None:
        """Tells what has changed since the last look."""
        for stage in pipeline.stages:
            if stage.status == "running" and self._is_new(f"{stage.stage} beginning", stage.started_at):
                self.begins(stage.stage)
            if stage.progress is not None and self._is_new(f"{stage.stage} news", stage.progress):
                self.progress(ProgressEvent.model_validate(stage.progress))
            if stage.status == "completed" and self._is_new(f"{stage.stage} end", stage.completed_at):
                self.finished(stage.stage, stage.seconds or 0.0)
            waits = stage.status in ("pending", "retrying")
            if waits and stage.error and self._is_new(f"{stage.stage} error", stage.error):
                self.trouble(stage)

    def waiting(self, stage: StageState, words: str) -> None:
        """Tells what a stage waits for, once for each thing."""
        if self._is_new(f"{stage.stage} waits", words):
            self.waits(stage.stage, words)

    def _is_new(self, name: str, value: object) -> bool:
        earlier, self._seen[name] = self._seen.get(name), value
        return earlier != value


async def create(
    store: TaskStore, settings: Settings, request: PipelineRequest, options: WorkerOptions, watcher: Watcher
) -> Pipeline:
    """Submits a pipeline, or goes on with one that a killed command left, and returns when it has ended.

    Where no worker serves the table, one is started here for this pipeline alone, with `options`. Cancelling this
    coroutine stops that worker at the next safe place and cancels the pipeline.
    """
    pipeline = await pipelines.unfinished(store, request) or await pipelines.submit(store, settings, request)
    stop, here = asyncio.Event(), None
    asked, waited = -SERVED, -ASKED
    clock = asyncio.get_running_loop().time
    try:
        while True:
            pipeline = await pipelines.get_pipeline(store, pipeline.id)
            watcher.look(pipeline)
            if pipeline.status in ENDED and not any(stage.status == "running" for stage in pipeline.stages):
                return pipeline
            if here is not None and here.done():
                here.result()
            if here is None and clock() - asked >= SERVED:
                asked = clock()
                if not await recovery.is_served(store):
                    own = replace(options, pipeline=pipeline.id, lanes={"gpu": 1, "cpu": 1})
                    here = asyncio.create_task(Worker(store, settings, own).run(stop))
            if clock() - waited >= ASKED:
                waited = clock()
                await _say_what_is_waited_for(store, pipeline, watcher, here is not None)
            await asyncio.sleep(LOOK)
    except asyncio.CancelledError:
        stop.set()
        if here is not None:
            for stage in pipeline.stages:
                if stage.status == "running":
                    watcher.stopping(stage.stage)
            await asyncio.wait([here])
        await pipelines.cancel(store, pipeline.id)
        raise
    finally:
        stop.set()
        if here is not None:
            with contextlib.suppress(asyncio.CancelledError):
                await here


async def _say_what_is_waited_for(
    store: TaskStore, pipeline: Pipeline, watcher: Watcher, alone: bool
) -> None:
    """Tells why the next stage does not begin, where that is not just a moment. alone: whether a worker runs here."""
    now = next((stage for stage in pipeline.stages if stage.status not in ENDED), None)
    if now is None or now.status not in WAITING:
        return
    if is_paused(now.scheduled_for):
        watcher.waiting(now, "This run is paused; press Resume on the dashboard to let it go on.")
    elif until := await waits_until(store, now.task_id, alone):
        watcher.waiting(now, f"Waiting {until}")
