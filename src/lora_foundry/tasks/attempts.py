"""Attempts at rows that may start: queued in the engine under a new lease, claimed by the worker that the engine gives them
to, given back where nobody will run them. Of all that wait for one folder, one attempt at a time works there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from lora_foundry.domain.task import HELD, WAITING, Task, TaskStatus
from lora_foundry.tasks.dependents import drop_attempts
from lora_foundry.tasks.hands import follow_hands
from lora_foundry.tasks.payloads import Kind
from lora_foundry.tasks.queues import Entry, Queues, new_lease, queue_of
from lora_foundry.tasks.rows import kind_of, to_task
from lora_foundry.tasks.schema import moment, ours, tasks, whole_row
from lora_foundry.tasks.store import TaskStore

BATCH = 40  # attempts that are queued in one transaction
UNKNOWN = 1000  # queued attempts that one sweep asks the engine about
LANES = ("gpu", "cpu")
RUNNING = TaskStatus.RUNNING


@dataclass(frozen=True)
class Admitted:
    """A row that this worker has taken, and the attempt that it was taken for. run: what the row holds as its run."""

    task: Task
    kind: Kind
    lane: str
    lease: str
    run: object = None


@dataclass(frozen=True)
class Alone:
    """A worker that serves one pipeline, through a queue to which nobody else listens."""

    worker: str
    pipeline: str


def folder_is_taken(alone: bool, queued: bool) -> sa.ColumnElement[bool]:
    """Whether another attempt works in a row's folder, or rows that belong together have begun there and not ended.

    queued: or one at a row that is as urgent waits in a queue. alone: of a worker of one pipeline, which waits for
    attempts at work only, since nobody may ever go on with what another command left; that is safe for versions, each of
    which has a folder of its own from when the next begins.
    """
    other = ours.alias()
    begun = other.c.status.in_(WAITING) & (other.c.begun == 1) & (other.c.root != ours.c.root)
    before = other.c.status.in_(WAITING) & other.c.lease.is_not(None) & (other.c.priority <= ours.c.priority)
    if alone:
        begun &= other.c.version.is_(None) | ours.c.version.is_(None)
    elif queued:
        begun |= before
    return sa.exists().where(
        other.c.folder == ours.c.folder,
        other.c.id != ours.c.id,
        other.c.status.in_([*WAITING, RUNNING]),
        (other.c.status == RUNNING) | begun,
    )


async def _one_a_folder(
    store: TaskStore, connection: AsyncConnection, rows: Sequence[Any], taken: sa.ColumnElement[bool]
) -> list[Any]:
    """Of rows that may start, one for each folder, looked at again when nobody else can decide on that folder."""
    first: dict[str | int, int] = {}
    for row in rows:
        first.setdefault(row.folder or row.id, row.id)
    chosen = set(first.values())
    if store.dialect == "postgresql":
        await store.reserve(connection, *{row.folder for row in rows if row.folder})
        still = sa.select(ours.c.id).where(ours.c.id.in_(chosen), ~taken)
        chosen = set((await connection.execute(still)).scalars().all())
    return [row for row in rows if row.id in chosen]


async def queue_attempts(store: TaskStore, queues: Queues, alone: Alone | None) -> bool:
    """Queues attempts at the most urgent of the rows that may start; whether there may be more.

    Where the engine has a database of its own, the lease is written first: a worker that dies in between leaves rows
    whose attempts the engine does not know, which the next look at everything gives back.
    """
    in_lane = ours.c.queue.in_(LANES)
    async with store.reading() as connection:  # nearly always there is nothing, and then nothing is locked
        if (await connection.execute(sa.select(ours.c.id).where(in_lane).limit(1))).first() is None:
            return False
    async with store.writing() as connection:
        now = await store.now(connection)
        # A pause between attempts is the queue's to keep; a row whose time has not come holds no folder.
        due = ours.c.due.is_(None) | (ours.c.due <= moment(now)) | (ours.c.status == TaskStatus.RETRYING)
        taken = folder_is_taken(alone is not None, queued=True)
        query = sa.select(ours.c.id, ours.c.folder, ours.c.lane, ours.c.priority, ours.c.due)
        query = query.where(in_lane, due, ~taken).order_by(ours.c.priority, ours.c.id).limit(BATCH)
        if alone is not None:
            query = query.where(ours.c.pipeline == alone.pipeline)
        found = (await connection.execute(query.with_for_update(skip_locked=True, of=ours))).all()
        entries = []
        for row in await _one_a_folder(store, connection, found, taken):
            delay = 0.0 if row.due is None else (row.due - moment(now)).total_seconds()
            queue = queue_of(row.lane, alone.worker if alone else None)
            entries.append(Entry(row.id, new_lease(row.id), queue, row.priority, max(0.0, delay)))
        if entries:
            leased = ours.update().where(ours.c.id == sa.bindparam("number"))
            leased = leased.values(
                queue=None, lease=sa.bindparam("name"), worker=alone.worker if alone else None
            )
            named = [{"number": entry.task_id, "name": entry.lease} for entry in entries]
            await connection.execute(leased, named)
        if queues.shared and entries:
            await queues.put(entries, connection)
    if not queues.shared:
        await queues.put(entries)
    return len(found) == BATCH


async def claim(
    store: TaskStore, worker: str, task_id: int, lease: str, alone: Alone | None = None
) -> Admitted | None:
    """Makes a row this worker's, for the attempt that was queued at it; None where the row no longer wants that attempt,
    or where another works in its folder meanwhile: then it waits again."""
    async with store.writing() as connection:
        mine = (ours.c.id == task_id) & (ours.c.lease == lease) & ours.c.status.in_(WAITING)
        query = sa.select(ours.c.lane, ours.c.folder, ours.c.root, ours.c.run).where(mine).with_for_update()
        row = (await connection.execute(query)).first()
        if row is None:
            return None
        if row.folder:
            await store.reserve(connection, row.folder)
        taken = sa.select(ours.c.id).where(mine, folder_is_taken(alone is not None, queued=False))
        if (await connection.execute(taken)).first() is not None:
            await connection.execute(ours.update().where(mine).values(lease=None, queue=ours.c.lane))
            return None
        if await _begin(store, connection, worker, task_id, row.root):
            task = to_task((await connection.execute(whole_row().where(tasks.c.id == task_id))).one())
            return Admitted(task, kind_of(task) or "unknown", row.lane, lease, row.run)
        await connection.execute(ours.update().where(mine).values(lease=None))
    await follow_hands(store)  # somebody changed it in the shared table
    return None


async def _begin(
    store: TaskStore, connection: AsyncConnection, worker: str, task_id: int, root: int | None
) -> bool:
    """Says in both tables that a row is running, if the shared one still says that it is held."""
    now = moment(await store.now(connection))
    values = {"status": TaskStatus.RUNNING, "started_at": now, "updated_at": now}
    chosen = (tasks.c.id == task_id) & (tasks.c.status == HELD)
    update = tasks.update().where(chosen).values(**values).returning(tasks.c.id)
    if (await connection.execute(update)).first() is None:
        return False
    running = {"status": RUNNING.value, "worker": worker, "cancel_requested": None}
    await connection.execute(ours.update().where(ours.c.id == task_id).values(begun=1, **running))
    begins = (ours.c.root == root) & ((ours.c.begun == 0) | ours.c.before.is_not(None))
    await connection.execute(ours.update().where(begins).values(begun=1, before=None))
    await store.wake(connection)
    return True


async def give_back(store: TaskStore, condition: sa.ColumnElement[bool]) -> None:
    """Lets rows whose attempts are queued, and not begun, wait for a new one; the old ones are dropped."""
    chosen = condition & ours.c.status.in_(WAITING) & ours.c.lease.is_not(None)
    async with store.writing() as connection:
        await drop_attempts(connection, chosen)
        await connection.execute(
            ours.update().where(chosen).values(lease=None, worker=None, queue=ours.c.lane)
        )
        await store.wake(connection)


async def give_back_stranded(
    store: TaskStore, queues: Queues, before: frozenset[str] = frozenset()
) -> frozenset[str]:
    """Gives back rows whose attempts somebody took out of a queue and has not begun since the look before: it died before
    it was known as a worker again, or its database went away in between, whereupon DBOS lets go of what it took.

    before: what was found so by the look before. Returns that of this one.
    """
    taken = await queues.taken()
    waiting = ours.c.lease.in_(taken) & ours.c.status.in_(WAITING)
    found: frozenset[str] = frozenset()
    if taken:
        async with store.reading() as connection:
            found = frozenset((await connection.execute(sa.select(ours.c.lease).where(waiting))).scalars())
    if stranded := found & before:
        await give_back(store, ours.c.lease.in_(sorted(stranded)))
    return found - before


async def give_back_unknown(store: TaskStore, queues: Queues) -> None:
    """Gives back rows that should start next and whose attempts the engine does not know: it was told of none before the
    worker died that queued them, or its tables were lost."""
    queued = ours.c.lease.is_not(None) & ours.c.status.in_(WAITING)
    first = sa.select(ours.c.lease).where(queued).order_by(ours.c.priority, ours.c.id).limit(UNKNOWN)
    async with store.reading() as connection:
        leases = set((await connection.execute(first)).scalars().all())
    if leases and (unknown := leases - await queues.live(sorted(leases))):
        await give_back(store, ours.c.lease.in_(sorted(unknown)))
