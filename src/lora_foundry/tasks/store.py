"""The store: every read and write of the task tables. A row is its line in `echo_tasks` and ours beside it, written in
one transaction. An attempt may write only while it holds the row's lease, so a worker that was thought dead changes
nothing when it wakes up; and whoever ends a row lets its children start, or ends them with it."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from lora_foundry.domain.task import ENDED, HELD, WAITING, Task, TaskStatus
from lora_foundry.errors import InputError, brief
from lora_foundry.tasks import database
from lora_foundry.tasks.dependents import drop_attempts, let_children_start, stop_children
from lora_foundry.tasks.rows import before_of, kind_of, newest_of, our_row, refers_to, time_of, to_task
from lora_foundry.tasks.schema import (
    both,
    clean_json,
    clock,
    dependencies,
    moment,
    ours,
    tasks,
    whole_row,
)

MAX_RESUMES = 20
MOST_IDS = 500
FIRST_PAUSE = 2.0
LONGEST_PAUSE = 300.0
_PRODUCER_COLUMNS = (
    *("name", "task_type", "payload", "priority", "status", "scheduled_for"),
    *("retries", "max_retries", "timeout", "dependencies", "creator"),
)


@dataclass(frozen=True)
class Failure:
    """How an attempt ended that did not complete. `kind` is the name of the exception, where there was one."""

    error: str
    permanent: bool = False
    progressed: bool = False
    kind: str = ""


class TaskStore:
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
        """For statements that only read: no write lock on SQLite, and on PostgreSQL, where each statement of a transaction
        sees what was committed before it anyway, no transaction."""
        async with self._engine.connect() as connection:
            level = {"isolation_level": "AUTOCOMMIT"} if self.dialect == "postgresql" else {}
            await connection.execution_options(reading=True, **level)
            yield connection

    async def now(self, connection: AsyncConnection) -> float:
        """Seconds since 1970 by the database's clock."""
        return float((await connection.execute(sa.select(clock(self.dialect)))).scalar_one())

    async def wake(self, connection: AsyncConnection) -> None:
        """Tells workers and dashboards, once the transaction is committed, that something changed. SQLite does so
        itself."""
        if self.dialect == "postgresql":
            await connection.execute(sa.text("SELECT pg_notify('echo_tasks', '')"))

    # Producers ----------------------------------------------------------------------------------------------

    async def add(
        self, *new: Task, first: Callable[[AsyncConnection], Awaitable[None]] | None = None
    ) -> list[Task]:
        """Inserts tasks in one transaction and gives each its id. Those of ours are held from the first moment.

        first: what is done before in the same transaction, and may still change the tasks.
        """
        async with self.writing() as connection:
            if first is not None:
                await first(connection)
            for task in new:
                values = {name: getattr(task, name) for name in _PRODUCER_COLUMNS}
                kind = kind_of(task) if task.status == TaskStatus.PENDING else None
                if kind is not None:
                    values["status"] = HELD
                stamp = moment(await self.now(connection))
                statement = tasks.insert().values(created_at=stamp, updated_at=stamp, **values)
                task.id = (await connection.execute(statement.returning(tasks.c.id))).scalar_one()
                if kind is not None:
                    row = our_row(task, kind)
                    task.uuid = row["uuid"]
                    await connection.execute(ours.insert().values(**row))
            await self.wake(connection)
        return list(new)

    async def next_version(self, connection: AsyncConnection, folder: str) -> int:
        """A number that no row of a character's folder bears; until the transaction ends, nobody else gets it."""
        await self.reserve(connection, folder)
        highest = sa.select(sa.func.max(ours.c.version)).where(ours.c.folder == folder.lower())
        return ((await connection.execute(highest)).scalar() or 0) + 1

    async def reserve(self, connection: AsyncConnection, *folders: str) -> None:
        """Lets one transaction at a time decide on a folder; SQLite has one at a time anyway."""
        if self.dialect == "postgresql":
            names = sorted(
                {folder.lower() for folder in folders}
            )  # in one order, or two would wait for each other
            lock = "SELECT pg_advisory_xact_lock(740113, hashtext(name)) FROM unnest(CAST(:names AS text[])) AS name"
            await connection.execute(sa.text(lock), {"names": names})

    async def find(self, reference: int | str) -> Task | None:
        """The task of that id or uuid."""
        async with self.reading() as connection:
            row = (await connection.execute(whole_row().where(refers_to([reference])).limit(1))).first()
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
        query = whole_row().order_by(tasks.c.id.desc()).limit(limit)
        if status is not None:
            query = query.where(tasks.c.id.in_(newest_of(status, limit)))
        if pipeline is not None:
            query = query.where(ours.c.pipeline == pipeline)
        async with self.reading() as connection:
            return [to_task(row) for row in await connection.execute(query)]

    async def counts(self) -> dict[str, int]:
        """How many tasks there are of each status."""
        query = sa.select(tasks.c.status, sa.func.count()).group_by(tasks.c.status)
        waiting = sa.select(sa.func.count()).where(ours.c.status == TaskStatus.PENDING)
        async with self.reading() as connection:
            rows = (await connection.execute(query)).all()
            held = (await connection.execute(waiting)).scalar_one()
        found = {status.value: 0 for status in TaskStatus} | {str(row[0]): row[1] for row in rows}
        held = min(held, found[HELD])
        return found | {HELD.value: found[HELD] - held, "pending": found["pending"] + held}

    async def is_unfinished(self) -> bool:
        """Whether any task of ours waits or runs."""
        query = sa.select(ours.c.id).where(ours.c.status.in_((*WAITING, TaskStatus.RUNNING))).limit(1)
        async with self.reading() as connection:
            return (await connection.execute(query)).first() is not None

    async def where(self, condition: sa.ColumnElement[bool]) -> list[Task]:
        """The tasks that a condition on the tables' columns chooses, in the order of their ids."""
        async with self.reading() as connection:
            rows = await connection.execute(whole_row().where(condition).order_by(tasks.c.id))
            return [to_task(row) for row in rows]

    async def cancel(self, *task_ids: int) -> None:
        """Cancels waiting tasks and their children now; asks the workers of running ones to kill them. Tasks that had
        completed and were to run again, and have not begun, are completed again."""
        chosen = ours.c.id.in_(task_ids)
        async with self.writing() as connection:
            stamp = moment(await self.now(connection))
            rows = (await connection.execute(whole_row().add_columns(ours.c.before).where(chosen))).all()
            waiting = [row for row in rows if row.status in WAITING]
            restored = waiting if all(row.before for row in waiting) and not _runs(rows) else []
            for row in restored:
                shared = {"result": row.before["result"], "retries": row.before["retries"]}
                for name in ("started_at", "completed_at"):
                    shared[name] = time_of(row.before[name])
                await drop_attempts(connection, ours.c.id == row.id)
                await self._write(connection, row.id, stamp, status=TaskStatus.COMPLETED, **shared)
                beside = {"progress": row.before["progress"], "worker": row.before["worker"], "before": None}
                await connection.execute(ours.update().where(ours.c.id == row.id).values(**beside))
            if not restored:
                for row in waiting:
                    said = {"error": "Cancelled on request.", "completed_at": stamp}
                    await drop_attempts(connection, ours.c.id == row.id)
                    await self._write(connection, row.id, stamp, status=TaskStatus.CANCELLED, **said)
                await stop_children(connection, [row.id for row in waiting], stamp)
            running = chosen & (ours.c.status == TaskStatus.RUNNING)
            await connection.execute(ours.update().where(running).values(cancel_requested=1))
            await self.wake(connection)

    async def arrange(self, task_ids: Sequence[int], **changes: Any) -> None:
        """Gives waiting tasks another `priority` or `scheduled_for`; what is queued already is queued again."""
        beside = {"due" if name == "scheduled_for" else name: value for name, value in changes.items()}
        async with self.writing() as connection:
            stamp = moment(await self.now(connection))
            chosen = ours.c.id.in_(task_ids) & ours.c.status.in_(WAITING)
            waiting = (await connection.execute(sa.select(ours.c.id).where(chosen))).scalars().all()
            shared = tasks.update().where(tasks.c.id.in_(waiting))
            await connection.execute(shared.values(updated_at=stamp, **changes))
            await connection.execute(ours.update().where(chosen).values(**beside))
            queued = chosen & ours.c.lease.is_not(None)
            await drop_attempts(connection, queued)
            again = {"lease": None, "worker": None, "queue": ours.c.lane}
            await connection.execute(ours.update().where(queued).values(**again))
            await self.wake(connection)

    async def with_descendants(self, roots: Sequence[Task]) -> list[Task]:
        """The tasks and all that depend on them, directly or not, in the order of their ids."""
        found = sa.select(dependencies.c.child).where(dependencies.c.parent.in_([root.id for root in roots]))
        below = found.cte("below", recursive=True)
        below = below.union(
            sa.select(dependencies.c.child).join(below, dependencies.c.parent == below.c.child)
        )
        chosen = tasks.c.id.in_([root.id for root in roots]) | tasks.c.id.in_(sa.select(below.c.child))
        return await self.where(chosen)

    async def run_again(self, rows: Sequence[Task], payloads: Mapping[int, object]) -> None:
        """Sets ended or waiting tasks to pending as if they had never run, with the runs that they hold now, and writes new
        payloads where given.

        Raises InputError, changing nothing, where one of them is running.
        """
        ids = [row.id or 0 for row in rows]
        async with self.writing() as connection:
            held = sa.select(tasks.c.id, tasks.c.status).where(tasks.c.id.in_(ids)).with_for_update()
            busy = [row.id for row in await connection.execute(held) if row.status == TaskStatus.RUNNING]
            if busy:
                raise InputError(f"Task {busy[0]} is running; cancel it first, or wait for its end.")
            stamp = moment(await self.now(connection))
            known = sa.select(ours.c.id, ours.c.before).where(ours.c.id.in_(ids))
            earlier = {row.id: row.before for row in await connection.execute(known)}
            for row in rows:
                number = row.id or 0
                shared: dict[str, Any] = {
                    "retries": 0,
                    "error": None,
                    "scheduled_for": None,
                    "started_at": None,
                }
                shared |= {"completed_at": None, "result": None}
                await connection.execute(
                    tasks.update().where(tasks.c.id == number).values(status=HELD, updated_at=stamp, **shared)
                )
                beside = our_row(row, kind_of(row) or "unknown") | {"due": None}
                beside["before"] = before_of(row) or earlier.get(number)
                await drop_attempts(connection, ours.c.id == number)
                statement = ours.update().where(ours.c.id == number) if number in earlier else ours.insert()
                await connection.execute(statement.values(**beside))
            for number, payload in payloads.items():
                await connection.execute(tasks.update().where(tasks.c.id == number).values(payload=payload))
            await self.wake(connection)

    async def prune(self, older_than: timedelta, is_ours: Callable[[Task], bool]) -> int:
        """Deletes our tasks that ended before that, and says how many; rows of others are never deleted."""
        async with self.writing() as connection:
            limit = moment(await self.now(connection)) - older_than
            ended = sa.func.coalesce(tasks.c.completed_at, tasks.c.updated_at) < limit
            old = whole_row().where(tasks.c.status.in_(ENDED) & ended)
            chosen = [task.id or 0 for row in await connection.execute(old) if is_ours(task := to_task(row))]
            await self._delete(connection, chosen)
        return len(chosen)

    async def remove(self, *task_ids: int) -> None:
        """Deletes tasks that have ended; others of these stay."""
        ended = sa.select(tasks.c.id).where(tasks.c.id.in_(task_ids) & tasks.c.status.in_(ENDED))
        async with self.writing() as connection:
            await self._delete(connection, list((await connection.execute(ended)).scalars()))

    async def _delete(self, connection: AsyncConnection, chosen: Sequence[int]) -> None:
        for start in range(0, len(chosen), MOST_IDS):
            part = chosen[start : start + MOST_IDS]
            linked = dependencies.c.child.in_(part) | dependencies.c.parent.in_(part)
            await connection.execute(dependencies.delete().where(linked))
            await connection.execute(ours.delete().where(ours.c.id.in_(part)))
            await connection.execute(tasks.delete().where(tasks.c.id.in_(part)))

    # The worker that holds the row's lease -----------------------------------------------------------------

    async def _write(
        self, connection: AsyncConnection, task_id: int, stamp: datetime, status: TaskStatus, **shared: Any
    ) -> None:
        """A new status in both tables; one that waits again may start at once, or when it is due."""
        waits = status in WAITING
        if waits or status in ENDED:
            beside: dict[str, Any] = {"lease": None, "cancel_requested": None}
            beside |= {"queue": ours.c.lane if waits else None, "due": shared.get("scheduled_for")}
            if waits:
                beside["worker"] = None
            if "resumes" in shared:
                beside["resumes"] = shared.pop("resumes")
            await connection.execute(
                ours.update().where(ours.c.id == task_id).values(status=status.value, **beside)
            )
        shown = HELD if waits else status
        await connection.execute(
            tasks.update().where(tasks.c.id == task_id).values(status=shown, updated_at=stamp, **shared)
        )

    async def _end(self, task_id: int, lease: str, status: TaskStatus, **shared: Any) -> bool:
        """Ends an attempt, if the lease still is the row's, and says so to the row's children."""
        async with self.writing() as connection:
            if not await self._holds(connection, task_id, lease):
                return False
            stamp = moment(await self.now(connection))
            if status in ENDED:
                shared["completed_at"] = stamp
            await self._write(connection, task_id, stamp, status=status, **shared)
            if status == TaskStatus.COMPLETED:
                await let_children_start(connection, task_id)
            elif status in ENDED:
                await stop_children(connection, [task_id], stamp)
            await self.wake(connection)
        return True

    async def _holds(self, connection: AsyncConnection, task_id: int, lease: str) -> bool:
        """Whether the row is this attempt's; on PostgreSQL it stays so until the transaction ends."""
        held = (ours.c.id == task_id) & (ours.c.lease == lease) & (ours.c.status == TaskStatus.RUNNING)
        mine = sa.select(ours.c.id).where(held).with_for_update()
        if (await connection.execute(mine)).first() is None:
            return False
        shared = sa.select(tasks.c.status).where(tasks.c.id == task_id).with_for_update()
        return (await connection.execute(shared)).scalar() == TaskStatus.RUNNING

    async def report(self, task_id: int, lease: str, progress: dict[str, Any]) -> bool:
        """Shows progress on the row; False says that the row is no longer this attempt's."""
        async with self.writing() as connection:
            if not await self._holds(connection, task_id, lease):
                return False
            shown = {"progress": clean_json(progress)}
            await connection.execute(ours.update().where(ours.c.id == task_id).values(**shown))
            stamp = moment(await self.now(connection))
            await connection.execute(tasks.update().where(tasks.c.id == task_id).values(updated_at=stamp))
        return True

    async def hold(self, task_id: int, lease: str, run: dict[str, Any]) -> None:
        """Keeps what the row asks for, resolved, for its later attempts."""
        async with self.writing() as connection:
            mine = (ours.c.id == task_id) & (ours.c.lease == lease)
            await connection.execute(ours.update().where(mine).values(run=clean_json(run)))

    async def complete(self, task_id: int, lease: str, result: dict[str, Any]) -> bool:
        values = {"result": clean_json(result), "error": None, "resumes": 0}
        return await self._end(task_id, lease, TaskStatus.COMPLETED, **values)

    async def cancelled(self, task_id: int, lease: str) -> bool:
        return await self._end(task_id, lease, TaskStatus.CANCELLED, error="Cancelled on request.")

    async def release(self, task_id: int, lease: str) -> bool:
        """Unfinished work of a worker that stops: pending again, no retry burnt."""
        return await self._end(task_id, lease, TaskStatus.PENDING)

    async def fail(self, task: Task, lease: str, failure: Failure) -> str | None:
        """Decides between resume, retry and failure; returns the new status, None where the row was lost."""
        async with self.reading() as connection:
            now = await self.now(connection)
        values: dict[str, Any] = {"error": brief(failure.error)}
        if failure.progressed and not failure.permanent and task.resumes < MAX_RESUMES:
            status = TaskStatus.PENDING
            values["resumes"] = task.resumes + 1
        elif failure.permanent or task.retries >= task.max_retries:
            status = TaskStatus.FAILED
            values["result"] = clean_json({"kind": failure.kind, "retryable": not failure.permanent})
        else:
            status = TaskStatus.RETRYING
            values |= {"retries": task.retries + 1, "scheduled_for": moment(now + pause(task.retries))}
            values["resumes"] = 0
        return status.value if await self._end(task.id or 0, lease, status, **values) else None

    async def return_row(
        self, connection: AsyncConnection, task_id: int, resumes: int, stamp: datetime
    ) -> None:
        """A row whose worker is dead: pending again, or failed where that happened too often."""
        await drop_attempts(connection, ours.c.id == task_id)
        if resumes < MAX_RESUMES:
            await self._write(connection, task_id, stamp, status=TaskStatus.PENDING, resumes=resumes + 1)
            return
        said = f"The task's worker died {resumes + 1} times in a row while it ran; see the task's log for the cause."
        await self._write(
            connection, task_id, stamp, status=TaskStatus.FAILED, error=said, completed_at=stamp
        )
        await stop_children(connection, [task_id], stamp)

    async def cancel_requests(self, leases: Sequence[str]) -> set[str]:
        """Which of these leases' rows somebody wants cancelled, or took away."""
        held = (
            sa.select(ours.c.lease)
            .select_from(both)
            .where(
                ours.c.lease.in_(leases),
                tasks.c.status == TaskStatus.RUNNING,
                ours.c.cancel_requested.is_(None),
            )
        )
        async with self.reading() as connection:
            return set(leases) - set((await connection.execute(held)).scalars().all())


def _runs(rows: Sequence[sa.Row[Any]]) -> bool:
    return any(row.status == TaskStatus.RUNNING for row in rows)


def pause(retries: int) -> float:
    """Seconds before the next retry: doubled each time, with jitter so that tasks do not return in step."""
    return min(FIRST_PAUSE * 2.0**retries, LONGEST_PAUSE) * random.uniform(0.75, 1.25)
