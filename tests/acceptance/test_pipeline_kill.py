"""Workers may die at any moment: what they leave is finished by others, once, and nothing is lost or done again."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from lora_foundry.domain.character import Character
from lora_foundry.domain.lora import TrainedLora
from lora_foundry.domain.task import Task
from lora_foundry.files.paths import RunPaths
from lora_foundry.files.storage import require_model
from lora_foundry.settings import Settings
from lora_foundry.stage_job import ENTRY
from lora_foundry.tasks.pipelines import PipelineRequest, recent_pipelines, retry, submit
from lora_foundry.tasks.recovery import Timing
from lora_foundry.tasks.service import serve
from lora_foundry.tasks.store import TaskStore
from lora_foundry.tasks.worker import WorkerOptions

IMAGES, STEPS = 8, 40
CHANGES: dict[str, dict[str, int]] = {
    "generate": {"images": IMAGES, "steps": 4, "batch_size": 1, "rounds": 2, "round_images": 2},
    "curate": {"budget": 1},
    "train": {
        "steps": STEPS,
        "batch_size": 2,
        "rank": 4,
        "checkpoint_every": 4,
        "regularisation": 2,
        "sample_steps": 1,
    },
    "evaluate": {"prompts": 1, "seeds": 1, "choose": False},
    "publish": {"min_change": 0},
}


def work(url: str, home: str, log: str) -> None:
    """What a worker's process does: `serve` with short times, its messages in a file."""
    descriptor = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
    os.dup2(descriptor, 2)
    timing = Timing(heartbeat=0.5, patience=3, dead_after=4, queue=0.2)
    serve(url, Settings(home=Path(home)), WorkerOptions(ENTRY, timing=timing))


class Workers:
    """One worker process at a time on a home and its SQLite file."""

    def __init__(self, processes: Any, home: Path) -> None:
        self._processes = processes
        self.settings = Settings(home=home)
        self.url = f"sqlite:///{home / 'tasks.db'}"
        self._process: Any = None

    def start(self) -> None:
        home = self.settings.home
        self._process = self._processes.Process(
            target=work, args=(self.url, str(home), str(home / "worker.log"))
        )
        self._process.start()

    def end(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.exitcode is None:
            os.kill(self._process.pid, number)
            self._process.join(60)
            assert self._process.exitcode is not None, "it does not end"
            assert number != signal.SIGKILL or self._process.exitcode == -number, (
                "it ended before it was killed"
            )

    def rows(self) -> dict[str, Task]:
        """The pipeline's rows by stage."""

        async def read() -> list[Task]:
            store = TaskStore(self.url)
            try:
                return await store.recent()
            finally:
                await store.close()

        return {task.name.split()[0]: task for task in asyncio.run(read())}

    def are_done(self) -> bool:
        """Whether every row is completed; asked often, and so of the file alone."""
        with closing(sqlite3.connect(self.settings.home / "tasks.db")) as table:
            return table.execute("SELECT DISTINCT status FROM echo_tasks").fetchall() == [("completed",)]

    def retry(self, changes: dict[str, object]) -> list[str]:
        """Runs the only pipeline again with other settings; the stages that this concerns."""

        async def again() -> list[Task]:
            store = TaskStore(self.url)
            try:
                (pipeline,) = await recent_pipelines(store)
                return await retry(store, self.settings, pipeline.id, changes=changes)
            finally:
                await store.close()

        return [task.name.split()[0] for task in asyncio.run(again())]

    def wait(self, done: Callable[[], bool], what: str) -> None:
        end = time.monotonic() + 240
        while not done():
            assert time.monotonic() < end, (
                f"no {what}: {[(n, t.status, t.error) for n, t in self.rows().items()]}"
            )
            time.sleep(0.05)


def newest_step(checkpoints: Path) -> int:
    return max((int(path.stem.removeprefix("step-")) for path in checkpoints.glob("step-*.json")), default=0)


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL and fork servers are POSIX")
def test_a_pipeline_whose_workers_are_killed_goes_on_where_it_stood(
    processes: Any, home: Path, elara: Character
) -> None:
    home.mkdir(parents=True)
    workers = Workers(processes, home)
    paths = RunPaths(workers.settings.datasets_dir / elara.name, elara.slug)
    checkpoints = paths.training / "checkpoints"

    async def put() -> None:
        store = TaskStore(workers.url)
        await store.upgrade()
        request = PipelineRequest(character=elara, settings=CHANGES, output_name="elara")
        await submit(store, workers.settings, request)
        await store.close()

    asyncio.run(put())
    try:
        workers.start()
        workers.wait(lambda: len(list(paths.images.glob("elara_*.png"))) >= 3, "pictures")
        workers.end(signal.SIGKILL)  # perhaps while a picture is written aside, which counts for nothing
        kept = {image.name: image.stat().st_mtime_ns for image in paths.images.glob("elara_*.png")}
        assert 3 <= len(kept) < IMAGES
        workers.start()
        workers.wait(lambda: len(list(checkpoints.glob("*"))) >= 2, "checkpoint")
        workers.end(signal.SIGKILL)
        assert not paths.training_result.exists()
        reached = newest_step(checkpoints)
        workers.start()
        workers.wait(lambda: newest_step(checkpoints) > reached, "further checkpoint")
        workers.end(
            signal.SIGTERM
        )  # the polite way: the training writes where it is, and the row waits again
        stopped_at = newest_step(checkpoints)
        log = (paths.training / "log.txt").read_text()
        assert f"[step {stopped_at}] checkpoint" in log.splitlines()[-1], log
        assert stopped_at < STEPS
        assert workers.rows()["train"].status == "pending"
        workers.start()
        workers.wait(workers.are_done, "published LoRA")
        rows = workers.rows()
        assert {task.status for task in rows.values()} == {"completed"}
        assert {task.retries for task in rows.values()} == {0}
        assert {name: (paths.images / name).stat().st_mtime_ns for name in kept} == kept
        trained = require_model(paths.training_result, TrainedLora, "train")
        assert trained.resumed_from == stopped_at
        sys.stdout.write(
            f"not made again: {len(kept)} of {IMAGES} pictures; the training went on from step {stopped_at}\n"
        )

        published = workers.settings.loras_dir / "elara.safetensors"
        first = published.read_bytes()
        assert workers.retry({"train.steps": 8}) == ["train", "evaluate", "publish"]
        workers.wait(workers.are_done, "retry")
    finally:
        workers.end(signal.SIGTERM)
    assert {name: (paths.images / name).stat().st_mtime_ns for name in kept} == kept
    assert require_model(paths.training_result, TrainedLora, "train").steps == 8
    assert published.read_bytes() != first
