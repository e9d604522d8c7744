"""Workers may die at any moment: what they leave is finished by others, once, and nothing is lost or done again."""

from __future__ import annotations

import asyncio
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from lora_foundry.domain.character import Character
from lora_foundry.domain.lora import TrainedLora
from lora_foundry.domain.task import Task
from lora_foundry.files.paths import RunPaths
from lora_foundry.files.storage import require_model
from lora_foundry.settings import Settings
from lora_foundry.tasks.pipelines import PipelineRequest, recent_pipelines, retry, submit
from lora_foundry.tasks.store import TaskStore

ROOT = Path(__file__).parents[2]
SERVE = """
import sys
from pathlib import Path
from lora_foundry.tasks.recovery import Timing
from lora_foundry.tasks.service import serve
from lora_foundry.tasks.worker import WorkerOptions
from lora_foundry.settings import Settings
from lora_foundry.stage_job import ENTRY
timing = Timing(heartbeat=0.5, patience=3, dead_after=4, queue=0.2)
serve(sys.argv[1], Settings(home=Path(sys.argv[2])), WorkerOptions(ENTRY, timing=timing))
"""
IMAGES, STEPS = 8, 40
CHANGES: dict[str, dict[str, int]] = {
    "generate": {"images": IMAGES, "steps": 4, "batch_size": 1},
    "curate": {"budget": 1},
    "train": {"steps": STEPS, "batch_size": 2, "rank": 4, "checkpoint_every": 4},
    "evaluate": {"prompts": 1, "seeds": 1, "choose": False},
    "publish": {"min_change": 0},
}


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short, open path: PostgreSQL run by root changes its user, and sockets allow no long names."""
    path = Path(tempfile.mkdtemp(prefix="lora-foundry-chaos-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path, ignore_errors=True)


class Workers:
    """One worker process at a time on a home and its SQLite file."""

    def __init__(self, home: Path) -> None:
        self.settings = Settings(home=home)
        self.url = f"sqlite:///{home / 'tasks.db'}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-c", SERVE, self.url, str(self.settings.home)]
        with (self.settings.home / "worker.log").open("ab") as log:
            self._process = subprocess.Popen(command, stderr=log, cwd=ROOT)

    def end(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)
            ended = self._process.wait(60)
            assert number != signal.SIGKILL or ended == -number, "it had ended before it was killed"

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


def test_a_pipeline_whose_workers_are_killed_goes_on_where_it_stood(home: Path, elara: Character) -> None:
    home.mkdir(parents=True)
    workers = Workers(home)
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
