"""From the shared table into the engine's queues. A pending row of ours is held the moment it is seen: its status in the
shared table becomes one that no other program's worker takes, and stays so until the row runs here. What may start is
then found by an index, and an attempt at it is queued under a new lease; the worker that the engine gives the attempt to
claims the row with that lease. Nothing that stands in a row, ours or another program's, stops the reading of the next."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.ext.asyncio import AsyncConnection

from lora_foundry.domain.task import HELD, OUR_TYPES, WAITING, Task, TaskStatus, TaskType
from lora_foundry.tasks.dependents import (
    drop_attempts,
    end,
    follow_outside,
    let_children_start,
    link,
    stop_children,
)
from lora_foundry.tasks.payloads import Kind
from lora_foundry.tasks.queues import Entry, Queues, new_lease, queue_of
from lora_foundry.tasks.rows import MOST_PRIORITY, kind_of, our_row, to_task
from lora_foundry.tasks.schema import NEW, dependencies, moment, ours, tasks, whole_row
from lora_foundry.tasks.store import TaskStore

logger = logging.getLogger(__name__)
PAGE = 200
PAGES = 5  # that one look takes in, and as many that it links
WINDOW = 1000
SWEEP = 60.0
BATCH = 200  # attempts that are queued in one transaction
UNKNOWN = 1000  # queued attempts that one sweep asks the engine about
LANES = ("gpu", "cpu")
RUNNING = TaskStatus.RUNNING
_TYPE = sa.func.lower(sa.cast(tasks.c.task_type, sa.Text))
_PAYLOAD = sa.cast(tasks.c.payload, sa.Text)
# The last word on a user_request row is `recognise`; this only keeps a table full of others from being read.
# SQLite keeps whatever was written as a time; what is none would never be due.
_IS_TIME = sa.cast(tasks.c.scheduled_for, sa.Text).like("____-__-__%")
_WHEN = sa.case((_IS_TIME, tasks.c.scheduled_for), else_=sa.null())
_MAYBE_OURS = _TYPE.in_(OUR_TYPES) | (
    _TYPE.in_([TaskType.USER_REQUEST.value])
    & (_PAYLOAD.like("%character_name%") | sa.func.lower(_PAYLOAD).like("%lora_%"))
)
# Rows that depend on nothing may be seen and started in any order, so the most urgent of them come first. The others
# come in the order in which they were written: parents before their children.
_DEPENDENCIES = sa.cast(tasks.c.dependencies, sa.Text)
_IS_FREE = sa.func.coalesce(_DEPENDENCIES, "[]").in_(["[]", "null", ""])
_ORDER = (sa.case((_IS_FREE, 0), else_=1), sa.case((_IS_FREE, tasks.c.priority), else_=0), tasks.c.id)


@dataclass(frozen=True)
class Admitted:
    """A row that this worker has taken, and the attempt that it was taken for."""

    task: Task
    kind: Kind
    lane: str
    lease: str


@dataclass(frozen=True)
class Alone:
    """A worker that serves one pipeline, through a queue to which nobody else listens."""

    worker: str
    pipeline: str


@dataclass
class Inbox:
    """How far a worker has read the shared table. Rows of a transaction that took long may come behind that, so a
    thousand ids are looked at again; and everything is, once a minute, for what people change by hand.

    left: more was written than one look takes in; the next one goes on with it. passed: rows read since the last sweep
    that are another program's, or that nothing can be done with.
    """

    seen: int = 0
    swept: float = -SWEEP
    left: bool = False
    passed: set[int] = field(default_factory=set)

    def sweeps(self) -> bool:
        return time.monotonic() - self.swept >= SWEEP


async def admit(
    store: TaskStore, queues: Queues, inbox: Inbox | None = None, alone: Alone | None = None
) -> bool:
    """Takes in what was written since and queues an attempt at each row that may start, most urgent first; whether there
    is more to do at once.

    With an inbox, rows that were written since are taken in a thousand at a time, so that many of them hold nobody up.
    alone: queue the rows of that pipeline only.
    """
    sweeps = inbox is None or inbox.sweeps()
    await take_in(store, inbox)
    if sweeps:
        await _give_back_unknown(store, queues)
    more = await _queue(store, queues, alone)
    return more or (inbox is not None and inbox.left)


async def take_in(store: TaskStore, inbox: Inbox | None = None) -> None:
    """Holds the rows of ours that were written since, and looks up their dependencies: all of them without an inbox."""
    given, inbox = inbox, inbox or Inbox()
    await _look(store, inbox)
    while given is None and inbox.left:
        await _look(store, inbox)


async def _look(store: TaskStore, inbox: Inbox) -> None:
    whole = inbox.sweeps()
    near = sa.true() if whole else tasks.c.id > inbox.seen - WINDOW
    async with store.reading() as connection:
        newest = (await connection.execute(sa.select(sa.func.max(tasks.c.id)))).scalar() or 0
        pending = sa.select(tasks.c.id).where(tasks.c.status == TaskStatus.PENDING, near, _MAYBE_OURS)
        ids = (await connection.execute(pending.order_by(*_ORDER))).scalars().all()
        unlinked = (
            await connection.execute(sa.select(ours.c.id).where(ours.c.queue == NEW).limit(1))
        ).first()
        waits = sa.select(dependencies.c.child).where(dependencies.c.outside == 1).limit(1)
        outside = (await connection.execute(waits)).first()
    ids = [number for number in ids if number not in inbox.passed]
    inbox.left = more = len(ids) > PAGE * PAGES
    for start in range(0, min(len(ids), PAGE * PAGES), PAGE):
        page = ids[start : min(start + PAGE, PAGE * PAGES)]
        inbox.passed.update(await _each_or_all(store, page, partial(_hold, inbox.passed)))
    if ids or unlinked:
        for _ in range(PAGES):
            # Whose parents may not be held yet has to wait for that.
            new = await _unlinked(store, free_only=more)
            if not new or len(await _each_or_all(store, new, _link)) == len(new):
                break
        else:
            inbox.left = True
    if outside:
        async with store.writing() as connection:
            await follow_outside(connection, moment(await store.now(connection)))
    if more:
        return
    if whole:
        await _follow_hands(store)
        inbox.swept = time.monotonic()
        inbox.passed.clear()
    inbox.seen = max(inbox.seen, newest)


async def _each_or_all(store: TaskStore, ids: Sequence[int], work: Any) -> list[int]:
    """Does something to rows in one transaction, or one by one where one of them spoils it for all; a row that cannot
    be worked on fails alone, and what cannot even be failed is left alone. Returns those that were left."""
    left: list[int] = []
    parts: list[Sequence[int]] = [ids]
    while parts:
        part = parts.pop(0)
        try:
            async with store.writing() as connection:
                await work(store, connection, part)
        except (OperationalError, InterfaceError, OSError):
            raise  # the database is away or busy: no row's fault
        except Exception as error:
            if len(part) > 1:
                parts = [[each] for each in part]
                continue
            logger.warning("Task %s cannot be read: %s", part[0], type(error).__name__)
            if not await _give_up(store, part[0], error):
                left.append(part[0])
    return left


async def _give_up(store: TaskStore, number: int, error: Exception) -> bool:
    """Fails a row of ours that no transaction can work on."""
    said = f"The task's row cannot be worked on ({type(error).__name__}); correct it, or add the task again."
    try:
        async with store.writing() as connection:
            stamp = moment(await store.now(connection))
            await end(connection, [number], TaskStatus.FAILED, said, stamp)
            await stop_children(connection, [number], stamp)
            unseen = (tasks.c.id == number) & (tasks.c.status == TaskStatus.PENDING) & _TYPE.in_(OUR_TYPES)
            values = {"status": TaskStatus.FAILED, "error": said, "completed_at": stamp}
            await connection.execute(tasks.update().where(unseen).values(**values))
    except DBAPIError:
        return False
    return True


async def _hold(passed: set[int], store: TaskStore, connection: AsyncConnection, ids: Sequence[int]) -> None:
    """Takes pending rows of ours out of other workers' reach, and gives each its line in our table. One that had one
    already was set to pending by hand, and runs as if it never had."""
    rows = (await connection.execute(whole_row().where(tasks.c.id.in_(ids)).order_by(tasks.c.id))).all()
    found = {task.id: (task, kind) for task in map(to_task, rows) if (kind := kind_of(task))}
    passed.update(number for number in ids if number not in found)
    if not found:
        return
    stamp = moment(await store.now(connection))
    chosen = tasks.c.id.in_(list(found)) & (tasks.c.status == TaskStatus.PENDING)
    held = tasks.update().where(chosen).values(status=HELD, updated_at=stamp).returning(tasks.c.id)
    mine = sorted((await connection.execute(held)).scalars().all())
    if not mine:
        return
    values = [our_row(*found[number]) for number in mine]
    await drop_attempts(connection, ours.c.id.in_(mine))
    statement = (postgresql.insert if store.dialect == "postgresql" else sqlite.insert)(ours)
    fresh = {name: statement.excluded[name] for name in values[0] if name != "id"}
    await connection.execute(statement.on_conflict_do_update(index_elements=["id"], set_=fresh), values)


async def _unlinked(store: TaskStore, free_only: bool) -> Sequence[int]:
    query = sa.select(ours.c.id).outerjoin(tasks, tasks.c.id == ours.c.id).where(ours.c.queue == NEW)
    if free_only:
        query = query.where(_IS_FREE)
    query = query.order_by(*_ORDER).limit(PAGE)
    async with store.reading() as connection:
        return (await connection.execute(query)).scalars().all()


async def _link(store: TaskStore, connection: AsyncConnection, ids: Sequence[int]) -> None:
    mine = ours.c.id.in_(ids) & (ours.c.queue == NEW)
    locked = sa.select(ours.c.id).where(mine).order_by(ours.c.id).with_for_update()
    still = (await connection.execute(locked)).scalars().all()
    rows = (await connection.execute(whole_row().where(tasks.c.id.in_(still)).order_by(tasks.c.id))).all()
    await link(connection, [to_task(row) for row in rows], moment(await store.now(connection)))
    gone = set(still) - {row.id for row in rows}
    await connection.execute(ours.delete().where(ours.c.id.in_(gone)))


async def _follow_hands(store: TaskStore) -> None:
    """What people and other programs did to rows of ours that wait or run: a row that was ended, taken or deleted in
    the shared table is so for us too, and so are its priority and time."""
    async with store.writing() as connection:
        priority = sa.case(
            (tasks.c.priority.between(0, MOST_PRIORITY), tasks.c.priority), else_=ours.c.priority
        )
        changed = sa.or_(ours.c.priority != priority, ours.c.due.is_distinct_from(_WHEN))
        same = (tasks.c.id == ours.c.id) & ours.c.status.in_(WAITING) & changed
        queued = sa.select(ours.c.id).join(tasks, tasks.c.id == ours.c.id).where(same)
        again = ours.c.id.in_((await connection.execute(queued)).scalars().all()) & ours.c.lease.is_not(None)
        await drop_attempts(connection, again)
        await connection.execute(
            ours.update().where(again).values(lease=None, worker=None, queue=ours.c.lane)
        )
        await connection.execute(ours.update().where(same).values(priority=priority, due=_WHEN))
        stamp = moment(await store.now(connection))
        differs = (
            sa.select(ours.c.id, tasks.c.status)
            .outerjoin(tasks, tasks.c.id == ours.c.id)
            .where(
                (ours.c.status.in_(WAITING) & sa.or_(tasks.c.status.is_(None), tasks.c.status != HELD))
                | ((ours.c.status == RUNNING) & sa.or_(tasks.c.status.is_(None), tasks.c.status != RUNNING))
            )
        )
        for number, status in (await connection.execute(differs)).all():
            if status == TaskStatus.PENDING:
                continue  # the inbox sees it
            row = ours.c.id == number
            await drop_attempts(connection, row)
            if status is None:
                await connection.execute(ours.delete().where(row))
            else:
                values = {"status": str(status), "queue": None, "worker": None, "lease": None}
                await connection.execute(ours.update().where(row).values(**values))
            if status == TaskStatus.COMPLETED:
                await let_children_start(connection, number)
            elif status != RUNNING:
                await stop_children(connection, [number], stamp)
            else:
                outside = dependencies.update().where(dependencies.c.parent == number).values(outside=1)
                await connection.execute(outside)


def _folder_is_taken(alone: bool, queued: bool) -> sa.ColumnElement[bool]:
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
        for folder in sorted({row.folder for row in rows if row.folder}):
            await store.reserve(connection, folder)
        still = sa.select(ours.c.id).where(ours.c.id.in_(chosen), ~taken)
        chosen = set((await connection.execute(still)).scalars().all())
    return [row for row in rows if row.id in chosen]


async def _queue(store: TaskStore, queues: Queues, alone: Alone | None) -> bool:
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
        taken = _folder_is_taken(alone is not None, queued=True)
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
            values = {"queue": None, "lease": entries[-1].lease, "worker": alone.worker if alone else None}
            await connection.execute(ours.update().where(ours.c.id == row.id).values(**values))
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
        query = sa.select(ours.c.lane, ours.c.folder, ours.c.root).where(mine).with_for_update()
        row = (await connection.execute(query)).first()
        if row is None:
            return None
        if row.folder:
            await store.reserve(connection, row.folder)
        taken = sa.select(ours.c.id).where(mine, _folder_is_taken(alone is not None, queued=False))
        if (await connection.execute(taken)).first() is not None:
            await connection.execute(ours.update().where(mine).values(lease=None, queue=ours.c.lane))
            return None
        if await _begin(store, connection, worker, task_id, row.root):
            task = to_task((await connection.execute(whole_row().where(tasks.c.id == task_id))).one())
            return Admitted(task, kind_of(task) or "unknown", row.lane, lease)
        await connection.execute(ours.update().where(mine).values(lease=None))
    await _follow_hands(store)  # somebody changed it in the shared table
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


async def take(store: TaskStore, worker: str, lane: str) -> Admitted | None:
    """Takes the most urgent row of a lane past the engine's queues, for one who runs it in a loop of his own."""
    await take_in(store)
    async with store.writing() as connection:
        now = moment(await store.now(connection))
        waits = ours.c.status.in_(WAITING) & (ours.c.queue.in_(LANES) | ours.c.lease.is_not(None))
        due = ours.c.due.is_(None) | (ours.c.due <= now)
        query = sa.select(ours.c.id).where(ours.c.lane == lane, waits, due)
        query = query.where(~_folder_is_taken(alone=False, queued=False))
        query = query.order_by(ours.c.priority, ours.c.id).limit(1)
        number = (await connection.execute(query.with_for_update(skip_locked=True, of=ours))).scalar()
        if number is None:
            return None
        lease = new_lease(number)
        await drop_attempts(connection, ours.c.id == number)
        await connection.execute(ours.update().where(ours.c.id == number).values(lease=lease, queue=None))
    return await claim(store, worker, number, lease)


async def give_back(store: TaskStore, condition: sa.ColumnElement[bool]) -> None:
    """Lets rows whose attempts are queued, and not begun, wait for a new one; the old ones are dropped."""
    chosen = condition & ours.c.status.in_(WAITING) & ours.c.lease.is_not(None)
    async with store.writing() as connection:
        await drop_attempts(connection, chosen)
        await connection.execute(
            ours.update().where(chosen).values(lease=None, worker=None, queue=ours.c.lane)
        )
        await store.wake(connection)


async def _give_back_unknown(store: TaskStore, queues: Queues) -> None:
    """Gives back rows that should start next and whose attempts the engine does not know: it was told of none before the
    worker died that queued them, or its tables were lost."""
    queued = ours.c.lease.is_not(None) & ours.c.status.in_(WAITING)
    first = sa.select(ours.c.lease).where(queued).order_by(ours.c.priority, ours.c.id).limit(UNKNOWN)
    async with store.reading() as connection:
        leases = (await connection.execute(first)).scalars().all()
    unknown = sorted(set(leases) - await queues.live(leases)) if leases else []
    if unknown:
        await give_back(store, ours.c.lease.in_(unknown))
