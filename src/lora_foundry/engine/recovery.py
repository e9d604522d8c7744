"""Fail-over: every worker beats on the database's clock, and whoever finds a stale beat gives the dead
worker's rows back. Children die before their worker counts as dead (see runner), so an attempt never runs
beside its successor."""

from __future__ import annotations

import socket
from datetime import UTC, datetime
from typing import NamedTuple

import sqlalchemy as sa

from lora_foundry.domain.task import OUR_TYPES, TaskStatus, TaskType
from lora_foundry.engine.ledger import MAX_RESUMES, Ledger
from lora_foundry.engine.schema import executors, moment, tasks


class Timing(NamedTuple):
    """Seconds. A child waits `patience` for a sign of life; `dead_after` must be longer than that."""

    beat: float = 2.0
    patience: float = 8.0
    dead_after: float = 10.0
    poll: float = 1.0
    report: float = 0.5
    grace: float = 30.0


class Lost(NamedTuple):
    """A row taken from a dead worker, and the ticket it held."""

    task_id: int
    ticket: str


async def beat(ledger: Ledger, worker: str, lanes: str) -> bool:
    """Signs of life. False says that this worker was unknown: it is new, or was declared dead meanwhile."""
    async with ledger.writing() as connection:
        now = await ledger.now(connection)
        known = await connection.execute(executors.update().where(executors.c.id == worker).values(beat=now))
        if not known.rowcount:
            host = socket.gethostname()
            await connection.execute(executors.insert().values(id=worker, host=host, lanes=lanes, beat=now))
    return known.rowcount == 1


async def sign_off(ledger: Ledger, worker: str) -> None:
    """Forgets a worker that stops; its rows were handed back before."""
    async with ledger.writing() as connection:
        await connection.execute(executors.delete().where(executors.c.id == worker))


async def alive(ledger: Ledger, dead_after: float = Timing().dead_after) -> list[str]:
    """The workers whose beat is fresh."""
    async with ledger.reading() as connection:
        limit = await ledger.now(connection) - dead_after
        query = sa.select(executors.c.id).where(executors.c.beat >= limit).order_by(executors.c.id)
        return list((await connection.execute(query)).scalars().all())


class WorkerState(NamedTuple):
    """A worker whose beat is fresh; `last_seen` is the database's time in UTC."""

    name: str
    host: str
    lanes: str
    last_seen: datetime


async def workers(ledger: Ledger, dead_after: float = Timing().dead_after) -> list[WorkerState]:
    """`alive`, with what each has said of itself."""
    query = sa.select(executors.c.id, executors.c.host, executors.c.lanes, executors.c.beat)
    async with ledger.reading() as connection:
        limit = await ledger.now(connection) - dead_after
        rows = (
            await connection.execute(query.where(executors.c.beat >= limit).order_by(executors.c.id))
        ).all()
    return [
        WorkerState(name, host or "", lanes or "", datetime.fromtimestamp(beat, UTC))
        for name, host, lanes, beat in rows
    ]


async def take_over(ledger: Ledger, dead_after: float) -> list[Lost]:
    """Gives back the rows of workers that are dead or unknown, and forgets those workers."""
    ours = sa.func.lower(tasks.c.task_type).in_([*OUR_TYPES, TaskType.USER_REQUEST.value])
    async with ledger.reading() as connection:  # nearly always there is nothing, and then nothing is locked
        limit = await ledger.now(connection) - dead_after
        suspects = _orphans(limit) & ours
        dead = sa.select(executors.c.id).where(executors.c.beat < limit)
        found = (await connection.execute(sa.select(tasks.c.id).where(suspects).limit(1))).first()
        if found is None and (await connection.execute(dead.limit(1))).first() is None:
            return []
    async with ledger.writing() as connection:
        now = await ledger.now(connection)
        locked = sa.select(tasks.c.id, tasks.c.ticket, tasks.c.resumes).where(
            _orphans(now - dead_after) & ours
        )
        rows = (await connection.execute(locked.with_for_update(skip_locked=True))).all()
        for number, ticket, resumes in rows:
            held = (
                (tasks.c.id == number) & (tasks.c.ticket == ticket) & (tasks.c.status == TaskStatus.RUNNING)
            )
            await connection.execute(tasks.update().where(held).values(**_returned(resumes or 0, now)))
        still = sa.select(tasks.c.worker).where(
            tasks.c.status == TaskStatus.RUNNING, tasks.c.worker.is_not(None)
        )
        gone = (executors.c.beat < now - dead_after) & executors.c.id.not_in(still)
        await connection.execute(executors.delete().where(gone))
    return [Lost(number, ticket or "") for number, ticket, _ in rows]


def _orphans(limit: float) -> sa.ColumnElement[bool]:
    """Running rows whose worker has not beaten since `limit`, and which were not taken just now."""
    fresh = sa.select(executors.c.id).where(executors.c.beat >= limit)
    claimed = tasks.c.worker.is_not(None) & tasks.c.worker.not_in(fresh)
    return (tasks.c.status == TaskStatus.RUNNING) & claimed & (tasks.c.updated_at < moment(limit))


def _returned(resumes: int, now: float) -> dict[str, object]:
    values: dict[str, object] = {
        "worker": None,
        "ticket": None,
        "updated_at": moment(now),
        "resumes": resumes + 1,
    }
    if resumes < MAX_RESUMES:
        return values | {"status": TaskStatus.PENDING}
    said = (
        f"The task's worker died {resumes + 1} times in a row while it ran; see the task's log for the cause."
    )
    return values | {"status": TaskStatus.FAILED, "error": said, "completed_at": moment(now)}
