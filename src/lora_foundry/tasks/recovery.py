"""Fail-over, which DBOS leaves to a service of its maker: every worker heartbeats on the database's clock, and whoever
finds a stale heartbeat gives the dead worker's rows back, to be queued again under a new lease. Children die before their
worker counts as dead (see runner), so an attempt never runs beside its successor."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from lora_foundry.domain.task import TaskStatus
from lora_foundry.tasks.attempts import give_back
from lora_foundry.tasks.queues import Queues, queue_of
from lora_foundry.tasks.schema import clock, dropped, executors, moment, ours, tasks
from lora_foundry.tasks.store import TaskStore

MOST_DROPPED = 1000
_HELD = (ours.c.status == TaskStatus.RUNNING) & ours.c.worker.is_not(None)


class Timing(NamedTuple):
    """Seconds. A child waits `patience` for a sign of life; `dead_after` must be longer than that. The table is looked
    at every `poll` seconds, since other programs write rows without a word; our own writers wake workers (see signals).
    The engine's queues are looked at every `queue` seconds.
    """

    heartbeat: float = 2.0
    patience: float = 8.0
    dead_after: float = 10.0
    poll: float = 2.0
    queue: float = 1.5
    report: float = 0.5
    grace: float = 30.0


class Own(NamedTuple):
    """What a worker runs: the leases of its attempts."""

    worker: str
    leases: frozenset[str]


class Lost(NamedTuple):
    """A row taken from a worker that is dead or does not run it, and the lease it held."""

    task_id: int
    lease: str


def this_process() -> str:
    """Names a process so that others on the same machine can tell whether it lives: boot, process namespace, pid."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{os.readlink('/proc/self/ns/pid')}/{os.getpid()}"
    except OSError:  # not Linux: a worker is dead when it is silent, not before
        return socket.gethostname()


def _is_gone(process: str | None) -> bool:
    """Whether a process of this machine has ended; False for those of other machines, which only time can tell."""
    place, _, pid = (process or "").rpartition("/")
    if not place or place != this_process().rpartition("/")[0]:
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except OSError:
        pass
    return False


async def heartbeat(store: TaskStore, worker: str, lanes: str) -> bool:
    """Signs of life. False says that this worker was unknown: it is new, or was declared dead meanwhile."""
    now = clock(store.dialect)
    async with store.writing() as connection:
        known = await connection.execute(executors.update().where(executors.c.id == worker).values(beat=now))
        if not known.rowcount:
            new = {"id": worker, "host": this_process(), "lanes": lanes, "beat": now}
            await connection.execute(executors.insert().values(**new))
    return known.rowcount == 1


class WorkerState(NamedTuple):
    """A live worker. lanes: "gpu,cpu" or one of them, "" for one that serves a single pipeline; last_seen: UTC by the
    database's clock."""

    name: str
    host: str
    lanes: str
    last_seen: datetime


async def workers(store: TaskStore, dead_after: float = Timing().dead_after) -> list[WorkerState]:
    """The workers whose heartbeat is fresh and whose process, where that can be told, has not ended."""
    async with store.reading() as connection:
        limit = await store.now(connection) - dead_after
        query = sa.select(executors).where(executors.c.beat >= limit).order_by(executors.c.id)
        rows = (await connection.execute(query)).all()
    return [
        WorkerState(row.id, row.id.rsplit("-", 2)[0], row.lanes or "", datetime.fromtimestamp(row.beat, UTC))
        for row in rows
        if not _is_gone(row.host)
    ]


async def is_served(store: TaskStore) -> bool:
    """Whether live workers take rows of every lane."""
    lanes = ",".join(worker.lanes for worker in await workers(store)).split(",")
    return {"gpu", "cpu"} <= set(lanes)


async def is_tidy(store: TaskStore, dead_after: float, own: Own) -> bool:
    """Whether there is nothing for `reclaim`, `bury` and `drop` to do, which is so nearly always: one look, no lock."""
    lost = sa.exists().where(_HELD, ours.c.worker.not_in(sa.select(executors.c.id)) | _not_run(own))
    async with store.reading() as connection:
        ended, silent = await _dead(store, connection, dead_after)
        left = (await connection.execute(sa.select(lost | sa.exists(sa.select(dropped.c.lease))))).scalar()
    return not (ended or silent or left)


async def tidy(
    store: TaskStore, queues: Queues, dead_after: float, own: Own, told: Callable[[Lost], None]
) -> None:
    """Gives back what dead workers held, and takes out of the queues what nobody wants any more. told: of each row that was
    given back, before anything waits for the engine."""
    if await is_tidy(store, dead_after, own):
        return
    for lost in await reclaim(store, dead_after, own):
        told(lost)
    await bury(store, queues, dead_after)
    await drop(store, queues)


async def reclaim(store: TaskStore, dead_after: float, own: Own | None = None) -> list[Lost]:
    """Gives back the rows of workers that are dead or unknown, and those that the asking worker holds and has not run for
    `dead_after` seconds, since it could not write an attempt's end."""
    async with store.reading() as connection:
        ended, _ = await _dead(store, connection, dead_after)
    async with store.writing() as connection:
        now = await store.now(connection)
        locked = (
            sa.select(ours.c.id, ours.c.lease, ours.c.resumes)
            .join(tasks, tasks.c.id == ours.c.id)
            .where(_orphans(now - dead_after, ended, own), tasks.c.status == TaskStatus.RUNNING)
            .order_by(ours.c.id)
        )
        rows = (await connection.execute(locked.with_for_update(of=ours, skip_locked=True))).all()
        for number, _, resumes in rows:
            await store.return_row(connection, number, resumes or 0, moment(now))
        if rows:
            await store.wake(connection)
    return [Lost(number, lease or "") for number, lease, _ in rows]


async def bury(store: TaskStore, queues: Queues, dead_after: float) -> None:
    """Gives back what dead workers had not begun, and forgets those of them that hold nothing any more. After `reclaim`: on
    SQLite a process that froze may hold the engine's file locked, and rows must not wait for it."""
    async with store.reading() as connection:
        ended, silent = await _dead(store, connection, dead_after)
    for worker in {*ended, *silent}:
        await _give_back_queued(store, queues, worker)
    if ended or silent:
        async with store.writing() as connection:
            now = await store.now(connection)
            still = sa.select(ours.c.worker).where(_HELD)
            gone = executors.c.id.in_(ended) | (executors.c.beat < now - dead_after)
            await connection.execute(executors.delete().where(gone & executors.c.id.not_in(still)))


async def _dead(
    store: TaskStore, connection: AsyncConnection, dead_after: float
) -> tuple[list[str], list[str]]:
    """The workers whose process has ended on this machine, and those that have been silent for too long."""
    look = sa.select(clock(store.dialect).label("now"), executors)
    known = (await connection.execute(look)).all()
    ended = [row.id for row in known if _is_gone(row.host)]
    return ended, [row.id for row in known if row.beat < row.now - dead_after]


async def _give_back_queued(store: TaskStore, queues: Queues, worker: str) -> None:
    """What was queued for that worker alone, and what it took out of a queue and did not begin."""
    taken = await queues.held_by(worker)
    await give_back(store, (ours.c.worker == worker) | ours.c.lease.in_(taken))
    async with store.reading() as connection:
        held = sa.select(ours.c.lease).where(ours.c.lease.in_(taken))
        still = set((await connection.execute(held)).scalars().all())
    # Those whose end was written to the row and not to the engine. What the worker still holds is its own: it may wake.
    await queues.cancel([lease for lease in taken if lease not in still])
    await queues.remove(queue_of("", worker))


async def drop(store: TaskStore, queues: Queues) -> None:
    """Takes the attempts that no row wants any more out of the engine's queues."""
    async with store.reading() as connection:
        query = sa.select(dropped.c.lease).limit(MOST_DROPPED)
        leases = (await connection.execute(query)).scalars().all()
    if leases:
        await queues.cancel(leases)
        async with store.writing() as connection:
            await connection.execute(dropped.delete().where(dropped.c.lease.in_(leases)))


async def sign_off(store: TaskStore, queues: Queues, worker: str) -> None:
    """Forgets a worker that stops, when its attempts have ended: what it has not begun waits for others."""
    await _give_back_queued(store, queues, worker)
    await forget(store, worker)


async def forget(store: TaskStore, worker: str) -> None:
    """Forgets one who holds nothing any more."""
    async with store.writing() as connection:
        await connection.execute(executors.delete().where(executors.c.id == worker))


def _not_run(own: Own | None) -> sa.ColumnElement[bool]:
    """Rows that the worker holds without an attempt."""
    if own is None:
        return sa.false()
    return (ours.c.worker == own.worker) & ours.c.lease.not_in(sorted(own.leases))


def _orphans(limit: float, ended: Sequence[str], own: Own | None) -> sa.ColumnElement[bool]:
    """Running rows whose worker has ended, or has not beaten since `limit` and did not take the row just now, or does not
    run it."""
    fresh = sa.select(executors.c.id).where(executors.c.beat >= limit)
    silent = (ours.c.worker.not_in(fresh) | _not_run(own)) & (tasks.c.updated_at < moment(limit))
    return _HELD & (silent | ours.c.worker.in_(ended))
