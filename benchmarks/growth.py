"""What a full table costs: milliseconds of counting, listing, queueing, claiming and completing beside 1,000 to 100,000 rows of
another program and as many waiting rows of ours as asked for. The last line is JSON: {sqlite: {1000: {...}}, ...}.

    python -m benchmarks.growth [--foreign 1000 10000 100000] [--ours 10000]

Half of our rows wait for a parent; one parent has a thousand children. Each figure is the median of several calls, and
`sweep_ms`, which a worker does once a minute, of reading everything.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import sqlalchemy as sa

from benchmarks.common import finish, table
from benchmarks.engine import database, short_task
from lora_foundry.tasks.admission import Inbox, admit, take_in
from lora_foundry.tasks.attempts import Admitted, claim
from lora_foundry.tasks.queues import Engine, queue_of
from lora_foundry.tasks.schema import moment, ours, tasks
from lora_foundry.tasks.store import TaskStore

REPEATS = 9
CHILDREN = 1000


async def _nobody(task_id: int, lease: str) -> str:
    raise AssertionError("nobody listens to what is queued here")


async def median_ms(work: Callable[[], Awaitable[object]], repeats: int = REPEATS) -> float:
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        await work()
        times.append((time.perf_counter() - started) * 1000)
    return round(statistics.median(times), 2)


async def fill(store: TaskStore, foreign: int, own: int) -> int:
    """Another program's rows, half of them pending, and ours; the id of the parent with many children."""
    async with store.writing() as connection:
        stamp = moment(await store.now(connection))
        rows = [
            {"name": f"watch {number}", "task_type": "monitoring" if number % 4 else "user_request", "priority": 3}
            | {"status": "pending" if number % 2 else "completed", "payload": {"message": f"number {number}"}}
            | {"created_at": stamp, "updated_at": stamp}
            for number in range(foreign)
        ]  # fmt: skip
        for start in range(0, len(rows), 5000):
            await connection.execute(sa.insert(tasks), rows[start : start + 5000])
    (head,) = await store.add(short_task(0))
    for start in range(0, own, 1000):
        new = [short_task(number) for number in range(start, min(start + 1000, own))]
        for index, task in enumerate(new):
            if index % 2:
                task.dependencies = [head.id if start == 0 else new[index - 1].uuid]
        await store.add(*new)
    return head.id or 0


async def measure(kind: str, foreign: int, own: int) -> dict[str, float]:
    folder = Path(tempfile.mkdtemp(prefix="lora-foundry-growth-"))
    folder.chmod(0o755)
    try:
        with database(kind, folder) as url:
            store = TaskStore(url)
            await store.upgrade()
            await fill(store, foreign, own)
            started = time.perf_counter()
            inbox = Inbox()
            await take_in(store, inbox)
            figures = {"first_ms": round((time.perf_counter() - started) * 1000, 2)}
            figures["counts_ms"] = await median_ms(store.counts)
            figures["list_ms"] = await median_ms(lambda: store.recent(limit=50))
            figures["list_pending_ms"] = await median_ms(lambda: store.recent(status="pending", limit=50))
            figures["sweep_ms"] = await median_ms(lambda: take_in(store), 3)
            engine = Engine(store.url)
            await engine.launch("benchmark", {queue_of("nobody"): 1}, 1.0, _nobody, "ERROR")
            figures["queue_batch_ms"] = await median_ms(lambda: admit(store, engine, inbox))
            while await admit(store, engine, inbox):
                pass
            figures["idle_ms"] = await median_ms(lambda: admit(store, engine, inbox))
            queued = iter(await store.where(ours.c.lease.is_not(None)))
            claimed: list[Admitted] = []

            async def claim_next() -> None:
                row = next(queued)
                taken = await claim(store, "benchmark", row.id or 0, row.lease or "")
                assert taken is not None
                claimed.append(taken)

            async def complete_next() -> None:
                each = claimed.pop()
                await store.complete(each.task.id or 0, each.lease, {})

            figures["claim_ms"] = await median_ms(claim_next)
            head = claimed.pop(0)
            started = time.perf_counter()
            await store.complete(head.task.id or 0, head.lease, {})
            figures["complete_with_children_ms"] = round((time.perf_counter() - started) * 1000, 2)
            figures["complete_ms"] = await median_ms(complete_next, REPEATS - 1)
            await engine.stop()
            engine.close()
            await store.close()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--foreign", type=int, nargs="+", default=[1000, 10_000, 100_000])
    parser.add_argument("--ours", type=int, default=10_000)
    parser.add_argument("--no-save", action="store_true", help="leave benchmarks/results as it is")
    options = parser.parse_args()
    found = {
        kind: {number: asyncio.run(measure(kind, number, options.ours)) for number in options.foreign}
        for kind in ("sqlite", "postgresql")
    }
    rows = [
        [kind, number, *figures.values()] for kind, each in found.items() for number, figures in each.items()
    ]
    names = list(next(iter(found["sqlite"].values())))
    table(["database", "foreign rows", *names], rows)
    finish("growth", found, {"ours": options.ours}, not options.no_save)


if __name__ == "__main__":
    main()
