"""A studio's day: 200 characters on 8 hosts that share one PostgreSQL. The workers, the queues and the database are real, and
the stages are not: each attempt sleeps for a fraction of what the stage would take. The last line is JSON.

    python -m benchmarks.studio [--characters 200] [--hosts 8] [--faster 1000]

A host's GPU is idle while it is handed its next attempt, and at the end of the day, when none is left. The first costs so many
real seconds an attempt, however long the attempt is: it is measured in this compressed day, and the day is then reckoned at
its true length with the hand-overs that were measured. utilisation: the share of the hosts' GPU time in which a stage runs,
from the first start to the last end of that day. database_cores: processor seconds of PostgreSQL for each second of the
compressed day; in a real one the same attempts are spread over hours.
"""

from __future__ import annotations

import argparse
import asyncio
import heapq
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

import psutil
import sqlalchemy as sa

from benchmarks.common import finish, table
from benchmarks.engine import database
from lora_foundry.domain.character import Character
from lora_foundry.settings import Settings
from lora_foundry.tasks.children import Child, Job, Outcome
from lora_foundry.tasks.pipelines import PipelineRequest, submit
from lora_foundry.tasks.service import serve
from lora_foundry.tasks.store import TaskStore
from lora_foundry.tasks.worker import WorkerOptions

ROOT = Path(__file__).parents[1]
MINUTES = {"generate": 12.0, "curate": 3.0, "caption": 0.5, "train": 30.0, "evaluate": 8.0, "publish": 0.3}
ON_CPU = ("caption",)
SPREAD = 0.3  # of a stage's time from one character to the next, either way


def seconds_of(stage: str, character: str) -> float:
    """What a stage of a character takes on a real day."""
    return MINUTES[stage] * 60 * random.Random(f"{stage} {character}").uniform(1 - SPREAD, 1 + SPREAD)


def be_a_host(url: str, home: Path, faster: float) -> None:
    """A real worker whose children are sleep."""

    async def sleep(child: Child, job: Job) -> Outcome:
        stage, who = job.work["stages"][0], job.work["run"]["character"]["name"]
        begun = time.time()
        await asyncio.sleep(seconds_of(stage, who) / faster)
        line = {"host": os.getpid(), "stage": stage, "who": who, "begun": begun, "ended": time.time()}
        home.mkdir(parents=True, exist_ok=True)
        with (home / f"{os.getpid()}.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        return Outcome(result={})

    with mock.patch.object(Child, "run", sleep):
        serve(url, Settings(home=home), WorkerOptions("nobody:nothing", {"gpu": 1, "cpu": 4}))


def processor_seconds(process: psutil.Process) -> float:
    """Of a process and everything below it."""
    total = 0.0
    for each in (process, *process.children(recursive=True)):
        try:
            times = each.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system + times.children_user + times.children_system
    return total


def postmaster(folder: Path) -> psutil.Process:
    return psutil.Process(int((folder / "pg" / "postmaster.pid").read_text(encoding="ascii").split()[0]))


async def asked(store: TaskStore, query: str) -> int:
    """A number from PostgreSQL's own statistics, over a connection that is there already."""
    async with store.reading() as connection:
        return int((await connection.execute(sa.text(query))).scalar() or 0)


TRANSACTIONS = "SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()"
CONNECTIONS = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"


async def day(url: str, folder: Path, characters: int, hosts: int, faster: float) -> dict[str, Any]:
    """Submits everything, runs it to the end, and counts what the database did meanwhile."""
    home = folder / "home"
    store = TaskStore(url)
    await store.upgrade()
    started = time.perf_counter()
    for number in range(characters):
        who = Character(name=f"Character {number}", description="1girl, red hair")
        await submit(store, Settings(home=home), PipelineRequest(character=who, recipe="mini"))
    found: dict[str, Any] = {"submit_seconds": round(time.perf_counter() - started, 1)}
    server = postmaster(folder)
    before, done, started = processor_seconds(server), await asked(store, TRANSACTIONS), time.perf_counter()
    words = ["--host", "--url", url, "--home", str(home), "--faster", str(faster)]
    connections = 0
    with (folder / "hosts.log").open("ab") as log:
        workers = [
            subprocess.Popen([sys.executable, "-m", "benchmarks.studio", *words], cwd=ROOT, stderr=log)
            for _ in range(hosts)
        ]
        try:
            while await store.is_unfinished():
                connections = max(connections, await asked(store, CONNECTIONS))
                await asyncio.sleep(2)
            seconds = time.perf_counter() - started
            found["database_cores"] = round((processor_seconds(server) - before) / seconds, 3)
            done = await asked(store, TRANSACTIONS) - done
            found["transactions_an_attempt"] = round(done / (len(MINUTES) * characters), 1)
            found["connections_most"] = connections
            found["hosts_cores"] = round(
                sum(processor_seconds(psutil.Process(each.pid)) for each in workers) / seconds, 2
            )
            found["compressed_seconds"] = round(seconds)
        finally:
            for each in workers:
                each.terminate()
            for each in workers:
                each.wait(60)
    counts = await store.counts()
    await store.close()
    gaps = hand_overs(home)
    found["completed"] = counts["completed"]
    found["hand_over_median_s"] = round(statistics.median(gaps), 2)
    found["hand_over_p99_s"] = round(statistics.quantiles(gaps, n=100)[98], 2)
    return found | real_day(characters, hosts, gaps)


def hand_overs(home: Path) -> list[float]:
    """Seconds between the end of an attempt and the start of the next one, of each host's GPU."""
    rows = [
        json.loads(line) for path in home.glob("*.jsonl") for line in path.read_text("utf-8").splitlines()
    ]
    by_host = defaultdict(list)
    for row in rows:
        if row["stage"] not in ON_CPU:
            by_host[row["host"]].append((row["begun"], row["ended"]))
    return [later[0] - earlier[1] for spans in by_host.values() for earlier, later in pairwise(sorted(spans))]


def real_day(characters: int, hosts: int, gaps: Sequence[float]) -> dict[str, float]:
    """The same day at its true length: whichever host is free next takes, of the stages that may start, the one that was
    submitted first, as the queue does, and waits as long for it as one of the measured hand-overs."""
    chance, stages = random.Random(0), list(MINUTES)
    free = [(0.0, host) for host in range(hosts)]
    ready = [(number, 0, 0.0) for number in range(characters)]
    busy = end = 0.0
    while ready:
        now, host = heapq.heappop(free)
        number, place, since = min(
            (each for each in ready if each[2] <= now), default=min(ready, key=lambda each: each[2])
        )
        ready.remove((number, place, since))
        begun = max(now, since) + chance.choice(gaps)
        took = seconds_of(stages[place], f"Character {number}")
        busy, end = busy + took, max(end, begun + took)
        heapq.heappush(free, (begun + took, host))
        after = begun + took
        place += 1
        while place < len(stages) and stages[place] in ON_CPU:  # beside the GPU
            after += chance.choice(gaps) + seconds_of(stages[place], f"Character {number}")
            place += 1
        if place < len(stages):
            ready.append((number, place, after))
    first_idle = min(free)[0]
    return {
        "hours": round(end / 3600, 2),
        "utilisation": round(busy / (hosts * end), 4),
        "idle_at_the_end": round(sum(end - each[0] for each in free) / (hosts * end), 4),
        "first_host_idle_after_hours": round(first_idle / 3600, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--characters", type=int, default=200)
    parser.add_argument("--hosts", type=int, default=8)
    parser.add_argument("--faster", type=float, default=1000.0, help="how many times as fast the stages are")
    parser.add_argument("--no-save", action="store_true", help="leave benchmarks/results as it is")
    parser.add_argument("--host", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--url", help=argparse.SUPPRESS)
    parser.add_argument("--home", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.host:
        be_a_host(options.url, options.home, options.faster)
        return
    folder = Path(tempfile.mkdtemp(prefix="lora-foundry-studio-"))
    folder.chmod(0o755)
    try:
        with database("postgresql", folder) as url:
            found = asyncio.run(day(url, folder, options.characters, options.hosts, options.faster))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    table(["", ""], [[name, value] for name, value in found.items()])
    details = {"characters": options.characters, "hosts": options.hosts, "faster": options.faster}
    finish("studio", found, details | {"minutes": MINUTES, "load": os.getloadavg()[1]}, not options.no_save)


if __name__ == "__main__":
    main()
