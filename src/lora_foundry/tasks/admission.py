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
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from lora_foundry.domain.task import HELD, OUR_TYPES, WAITING, TaskStatus, TaskType
from lora_foundry.tasks.attempts import (
    LANES,
    Admitted,
    Alone,
    claim,
    folder_is_taken,
    give_back_stranded,
    give_back_unknown,
    queue_attempts,
)
from lora_foundry.tasks.database import is_away
from lora_foundry.tasks.dependents import (
    drop_attempts,
    end,
    follow_outside,
    link,
    stop_children,
)
from lora_foundry.tasks.hands import follow_hands
from lora_foundry.tasks.queues import Queues, new_lease
from lora_foundry.tasks.rows import kind_of, our_row, to_task
from lora_foundry.tasks.schema import NEW, dependencies, moment, ours, tasks, whole_row
from lora_foundry.tasks.store import TaskStore

logger = logging.getLogger(__name__)
PAGE = 200
PAGES = 5  # that one look takes in, and as many that it links
WINDOW = 1000
SWEEP = 60.0
# Between two looks for attempts that were taken out of a queue and are not begun: such a one waits for two of them at most.
STRANDED = 10.0
RUNNING = TaskStatus.RUNNING
_TYPE = sa.func.lower(sa.cast(tasks.c.task_type, sa.Text))
_PAYLOAD = sa.cast(tasks.c.payload, sa.Text)
# The last word on a user_request row is `recognise`; this only keeps a table full of others from being read.
_MAYBE_OURS = _TYPE.in_(OUR_TYPES) | (
    _TYPE.in_([TaskType.USER_REQUEST.value])
    & (_PAYLOAD.like("%character_name%") | sa.func.lower(_PAYLOAD).like("%lora_%"))
)
# Rows that depend on nothing may be seen and started in any order, so the most urgent of them come first. The others
# come in the order in which they were written: parents before their children.
_DEPENDENCIES = sa.cast(tasks.c.dependencies, sa.Text)
_IS_FREE = sa.func.coalesce(_DEPENDENCIES, "[]").in_(["[]", "null", ""])
_ORDER = (sa.case((_IS_FREE, 0), else_=1), sa.case((_IS_FREE, tasks.c.priority), else_=0), tasks.c.id)
# The newest row; whether dependencies are to be looked up; whether a row waits for another program's.
_STATE = sa.select(
    sa.select(sa.func.max(tasks.c.id)).scalar_subquery(),
    sa.exists().where(ours.c.queue == NEW),
    sa.exists().where(dependencies.c.outside == 1),
)


@dataclass
class Inbox:
    """How far a worker has read the shared table. Rows of a transaction that took long may come behind that, so a
    thousand ids are looked at again; and everything is, once a minute, for what people change by hand.

    left: more was written than one look takes in; the next one goes on with it. passed: rows read since the last sweep
    that are another program's, or that nothing can be done with. looked, taken: when attempts that had been taken
    out of a queue and not begun were last looked for, and which those were.
    """

    seen: int = 0
    swept: float = -SWEEP
    left: bool = False
    passed: set[int] = field(default_factory=set)
    looked: float = -STRANDED
    taken: frozenset[str] = frozenset()

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
        await give_back_unknown(store, queues)
    if inbox is not None and (now := time.monotonic()) - inbox.looked >= STRANDED:
        inbox.taken = await give_back_stranded(store, queues, inbox.taken)
        inbox.looked = now
    more = await queue_attempts(store, queues, alone)
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
        pending = sa.select(tasks.c.id).where(tasks.c.status == TaskStatus.PENDING, near, _MAYBE_OURS)
        ids = (await connection.execute(pending.order_by(*_ORDER))).scalars().all()
        newest, unlinked, outside = (await connection.execute(_STATE)).one()
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
        await follow_hands(store)
        inbox.swept = time.monotonic()
        inbox.passed.clear()
    inbox.seen = max(inbox.seen, newest or 0)


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
        except Exception as error:
            if is_away(error):
                raise  # no row's fault
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


async def take(store: TaskStore, worker: str, lane: str) -> Admitted | None:
    """Takes the most urgent row of a lane past the engine's queues, for one who runs it in a loop of his own."""
    await take_in(store)
    async with store.writing() as connection:
        now = moment(await store.now(connection))
        waits = ours.c.status.in_(WAITING) & (ours.c.queue.in_(LANES) | ours.c.lease.is_not(None))
        due = ours.c.due.is_(None) | (ours.c.due <= now)
        query = sa.select(ours.c.id).where(ours.c.lane == lane, waits, due)
        query = query.where(~folder_is_taken(alone=False, queued=False))
        query = query.order_by(ours.c.priority, ours.c.id).limit(1)
        number = (await connection.execute(query.with_for_update(skip_locked=True, of=ours))).scalar()
        if number is None:
            return None
        lease = new_lease(number)
        await drop_attempts(connection, ours.c.id == number)
        await connection.execute(ours.update().where(ours.c.id == number).values(lease=lease, queue=None))
    return await claim(store, worker, number, lease)
