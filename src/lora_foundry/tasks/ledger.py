"""The ledger: every read and write of `echo_tasks`. The table is the truth; an attempt may write to its row
only while it holds the row's ticket, so a worker that was thought dead changes nothing when it wakes up."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from lora_foundry.domain.task import ENDED, WAITING, Task, TaskStatus
from lora_foundry.errors import InputError
from lora_foundry.tasks import database
from lora_foundry.tasks.schema import clock, moment, tasks

MAX_RESUMES = 20
MOST_IDS = 500
FIRST_PAUSE = 2.0
LONGEST_PAUSE = 300.0
_PRODUCER_COLUMNS = (
    *("name", "task_type", "payload", "priority", "status", "uuid", "scheduled_for"),
    *("retries", "max_retries", "timeout", "dependencies", "creator", "pipeline"),
)


@dataclass(frozen=True)
class Failure:
    """How an attempt ended that did not complete. `kind` is the name of the exception, where there was one."""

    error: str
    permanent: bool = False
    progressed: bool = False
    kind: str = ""


def to_task(row: sa.Row[Any]) -> Task:
    """A row as a Task; numbers that are no numbers become the contract's defaults."""
    values = dict(row._mapping)
    values.pop("cancel_requested", None)
    for name, default in (
        ("priority", 3),
        ("retries", 0),
        ("max_retries", 3),
        ("timeout", 300),
        ("resumes", 0),
    ):
        if not isinstance(values.get(name), int):
            values[name] = default
    values["uuid"] = values.get("uuid") or ""
    return Task(**values)


class Ledger:
    """The tasks of one database. Make it, `upgrade` it once, use it from any coroutine, `close` it."""

    def __init__(self, url: str) -> None:
        self.url = database.parse_url(url)
        self._engine = database.open_engine(self.url)

    @property
    def dialect(self) -> str:
        return self._engine.dialect.name

    async def upgrade(self) -> None:
        """Creates or adopts the tables; safe to call at every start."""
        await database.upgrade(self.url)

    async def close(self) -> None:
        await self._engine.dispose()

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[AsyncConnection]:
        """A transaction that is committed at the end of the block."""
        async with self._engine.begin() as connection:
            yield connection

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncConnection]:
        """A transaction that takes no write lock on SQLite."""
        async with self._engine.connect() as connection:
            await connection.execution_options(reading=True)
            yield connection

    async def now(self, connection: AsyncConnection) -> float:
        """Seconds since 1970 by the database's clock."""
        return float((await connection.execute(sa.select(clock(self.dialect)))).scalar_one())

    # Producers ----------------------------------------------------------------------------------------------

    async def add(self, *new: Task) -> list[Task]:
        """Inserts tasks in one transaction and gives each its id."""
        async with self.writing() as connection:
            for task in new:
                values = {name: getattr(task, name) for name in _PRODUCER_COLUMNS}
                stamp = moment(await self.now(connection))
                statement = tasks.insert().values(created_at=stamp, updated_at=stamp, **values)
                task.id = (await connection.execute(statement.returning(tasks.c.id))).scalar_one()
        return list(new)

    async def find(self, reference: int | str) -> Task | None:
        """The task of that id or uuid."""
        async with self.reading() as connection:
            row = (await connection.execute(sa.select(tasks).where(refers_to([reference])).limit(1))).first()
        return None if row is None else to_task(row)

    async def get(self, reference: int | str) -> Task:
        """`find`, raising InputError where there is none."""
        task = await self.find(reference)
        if task is None:
            raise InputError(
                f"There is no task {reference!r}; `lora-foundry tasks list` shows those there are."
            )
        return task

    async def recent(
        self, *, status: str | None = None, pipeline: str | None = None, limit: int = 100
    ) -> list[Task]:
        """The newest tasks first."""
        query = sa.select(tasks).order_by(tasks.c.id.desc()).limit(limit)
        if status is not None:
            query = query.where(tasks.c.status == status)
        if pipeline is not None:
            query = query.where(tasks.c.pipeline == pipeline)
        async with self.reading() as connection:
            return [to_task(row) for row in await connection.execute(query)]

    async def counts(self) -> dict[str, int]:
        """How many tasks there are of each status."""
        query = sa.select(tasks.c.status, sa.func.count()).group_by(tasks.c.status)
        async with self.reading() as connection:
            rows = (await connection.execute(query)).all()
        return {status.value: 0 for status in TaskStatus} | {str(row[0]): row[1] for row in rows}

    async def where(self, condition: sa.ColumnElement[bool]) -> list[Task]:
        """The tasks that a condition on the table's columns chooses, in the order of their ids."""
        async with self.reading() as connection:
            rows = await connection.execute(sa.select(tasks).where(condition).order_by(tasks.c.id))
            return [to_task(row) for row in rows]

    async def cancel(self, *task_ids: int) -> None:
        """Cancels waiting tasks now; asks the workers of running ones to kill them."""
        chosen = tasks.c.id.in_(task_ids)
        async with self.writing() as connection:
            stamp = moment(await self.now(connection))
            ended = {"status": TaskStatus.CANCELLED, "error": "Cancelled on request.", "completed_at": stamp}
            waiting = chosen & tasks.c.status.in_(WAITING)
            running = chosen & (tasks.c.status == TaskStatus.RUNNING)
            await connection.execute(tasks.update().where(waiting).values(updated_at=stamp, **ended))
            await connection.execute(tasks.update().where(running).values(cancel_requested=1))

    async def with_descendants(self, parents: Sequence[Task]) -> list[Task]:
        """The tasks and all that depend on them, directly or not."""
        found = {task.id: task for task in parents}
        names = set[str]().union(*(references_of(task) for task in parents))
        while names:
            text = sa.cast(tasks.c.dependencies, sa.Text)
            near = await self.where(sa.or_(*(text.contains(name, autoescape=True) for name in names)))
            new = [task for task in near if task.id not in found and names & _parents_of(task)]
            found |= {task.id: task for task in new}
            names = set[str]().union(*(references_of(task) for task in new))
        return list(found.values())

    async def run_again(self, task_ids: Sequence[int], payloads: Mapping[int, object]) -> None:
        """Sets ended or waiting tasks to pending as if they had never run, and writes new payloads where given.

        Raises InputError, changing nothing, where one of them is running.
        """
        fresh = {"status": TaskStatus.PENDING, "retries": 0, "resumes": 0, "error": None, "ticket": None}
        fresh |= {"scheduled_for": None, "started_at": None, "completed_at": None, "cancel_requested": None}
        fresh |= {"worker": None, "result": None, "progress": None}
        chosen = tasks.c.id.in_(task_ids)
        async with self.writing() as connection:
            held = sa.select(tasks.c.id, tasks.c.status).where(chosen).with_for_update()
            busy = [row.id for row in await connection.execute(held) if row.status == TaskStatus.RUNNING]
            if busy:
                raise InputError(f"Task {busy[0]} is running; cancel it first, or wait for its end.")
            stamp = moment(await self.now(connection))
            await connection.execute(tasks.update().where(chosen).values(updated_at=stamp, **fresh))
            for number, payload in payloads.items():
                await connection.execute(tasks.update().where(tasks.c.id == number).values(payload=payload))

    async def prune(self, older_than: timedelta, is_ours: Callable[[Task], bool]) -> int:
        """Deletes our tasks that ended before that, and says how many; rows of others are never deleted."""
        async with self.writing() as connection:
            limit = moment(await self.now(connection)) - older_than
            ended = sa.func.coalesce(tasks.c.completed_at, tasks.c.updated_at) < limit
            old = sa.select(tasks).where(tasks.c.status.in_(ENDED) & ended)
            ours = [task.id for row in await connection.execute(old) if is_ours(task := to_task(row))]
            for start in range(0, len(ours), MOST_IDS):
                part = tasks.c.id.in_(ours[start : start + MOST_IDS])
                await connection.execute(tasks.delete().where(part))
        return len(ours)

    # The worker that holds the row's ticket -----------------------------------------------------------------

    async def _settle(self, task_id: int, held_ticket: str, **values: Any) -> bool:
        """Writes to a running row if the ticket still is the row's."""
        held = (
            (tasks.c.id == task_id) & (tasks.c.ticket == held_ticket) & (tasks.c.status == TaskStatus.RUNNING)
        )
        async with self.writing() as connection:
            stamp = moment(await self.now(connection))
            if values.get("status") in ENDED:
                values["completed_at"] = stamp
            done = await connection.execute(tasks.update().where(held).values(updated_at=stamp, **values))
        return done.rowcount == 1

    async def report(self, task_id: int, ticket: str, progress: dict[str, Any]) -> bool:
        """Shows progress on the row; False says that the row is no longer this attempt's."""
        return await self._settle(task_id, ticket, progress=progress)

    async def complete(self, task_id: int, ticket: str, result: dict[str, Any]) -> bool:
        return await self._settle(
            task_id, ticket, status=TaskStatus.COMPLETED, result=result, error=None, resumes=0
        )

    async def cancelled(self, task_id: int, ticket: str) -> bool:
        return await self._settle(task_id, ticket, status=TaskStatus.CANCELLED, error="Cancelled on request.")

    async def hand_back(self, task_id: int, ticket: str) -> bool:
        """Unfinished work of a worker that stops: pending again, no retry burnt."""
        return await self._settle(task_id, ticket, status=TaskStatus.PENDING, worker=None, ticket=None)

    async def fail(self, task: Task, ticket: str, failure: Failure) -> str | None:
        """Decides between resume, retry and failure; returns the new status, None where the row was lost."""
        async with self.reading() as connection:
            now = await self.now(connection)
        values: dict[str, Any] = {"error": failure.error, "worker": None, "ticket": None}
        if failure.progressed and not failure.permanent and task.resumes < MAX_RESUMES:
            values |= {"status": TaskStatus.PENDING, "resumes": task.resumes + 1}
        elif failure.permanent or task.retries >= task.max_retries:
            values |= {"status": TaskStatus.FAILED}
            values["result"] = {"kind": failure.kind, "retryable": not failure.permanent}
        else:
            resume_at = moment(now + pause(task.retries))
            values |= {"status": TaskStatus.RETRYING, "retries": task.retries + 1, "scheduled_for": resume_at}
            values["resumes"] = 0
        return str(values["status"]) if await self._settle(task.id or 0, ticket, **values) else None

    async def cancel_requests(self, tickets: Sequence[str]) -> set[str]:
        """Which of these tickets' rows somebody wants cancelled, or took away."""
        held = sa.select(tasks.c.ticket).where(
            tasks.c.ticket.in_(tickets),
            tasks.c.status == TaskStatus.RUNNING,
            tasks.c.cancel_requested.is_(None),
        )
        async with self.reading() as connection:
            return set(tickets) - set((await connection.execute(held)).scalars().all())


def pause(retries: int) -> float:
    """Seconds before the next retry: doubled each time, with jitter so that tasks do not return in step."""
    return min(FIRST_PAUSE * 2.0**retries, LONGEST_PAUSE) * random.uniform(0.75, 1.25)


def references_of(task: Task) -> set[str]:
    """All names by which other tasks may call this one."""
    return {str(task.id), task.uuid} - {""}


def _parents_of(task: Task) -> set[str]:
    return {str(each) for each in task.dependencies} if isinstance(task.dependencies, list) else set()


def dependency_names(task: Task) -> list[str]:
    """The dependencies as text. Raises InputError for what is no list of ids and uuids."""
    if task.dependencies in (None, ""):
        return []
    if not isinstance(task.dependencies, list) or any(
        isinstance(each, bool) or not isinstance(each, int | str) for each in task.dependencies
    ):
        raise InputError(
            f"The dependencies {str(task.dependencies)[:80]!r} are no JSON list of task ids or uuids."
        )
    return [str(each) for each in task.dependencies]


def refers_to(references: Sequence[int | str]) -> sa.ColumnElement[bool]:
    """The rows that one of these ids or uuids means."""
    names = [str(each) for each in references]
    numbers = [int(each) for each in names if each.isascii() and each.isdigit() and len(each) < 10]
    return tasks.c.id.in_(numbers) | tasks.c.uuid.in_(names)


def is_due(now: datetime) -> sa.ColumnElement[bool]:
    return tasks.c.scheduled_for.is_(None) | (tasks.c.scheduled_for <= now)
