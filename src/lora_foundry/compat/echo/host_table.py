"""What our handlers ask of the table of a host whose own worker calls them. That worker takes any pending row, dependencies
or not: a child that came too early is put off in the table and comes again, and a row that a worker of ours is to run is
handed to it. CancelledError is the one way out of a host's worker that leaves a row as it was written here.

A host queries its database with calls that block its loop. A transaction of ours that waited for that loop while it
holds a row which the host wants would never end, so each has a thread and a loop of its own."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import sqlalchemy as sa

from lora_foundry.compat.echo.queue import database_of
from lora_foundry.compat.echo.task import canonical
from lora_foundry.domain.task import ENDED, OUR_TYPES, TaskStatus
from lora_foundry.errors import InputError, brief
from lora_foundry.tasks.admission import Inbox, take_in
from lora_foundry.tasks.schema import moment, ours, tasks
from lora_foundry.tasks.store import TaskStore

# Seconds before a child that came too early comes again. A host takes about one row a second, the most urgent first: the
# more rows of ours wait, the longer each stays away, or the host would do nothing but put them off.
PUT_OFF, PUT_OFF_EACH = 10.0, 2.0
_WAITING = sa.select(sa.func.count()).where(
    tasks.c.status == TaskStatus.PENDING, sa.func.lower(sa.cast(tasks.c.task_type, sa.Text)).in_(OUR_TYPES)
)
_OPEN = {status.value for status in (TaskStatus.PENDING, TaskStatus.RUNNING, TaskStatus.RETRYING)}


class HostTable:
    """The shared table, read and written by the contract's columns alone."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._ready = False

    @classmethod
    def of(cls, worker: object) -> HostTable | None:
        """The table that a host's worker works on; None where it is no host's, and looks at dependencies itself."""
        config = getattr(getattr(worker, "task_queue", None), "db_config", None)
        return cls(database_of(config)) if isinstance(config, dict) else None

    async def wait_for_parents(self, task: Any) -> None:
        """Returns where all parents are completed.

        Otherwise raises CancelledError: the row is put off while a parent is at work, cancelled where one failed. Raises
        InputError for a parent that is not there.
        """
        parents = getattr(task, "dependencies", None)
        if not isinstance(parents, list) or not parents:
            return
        if not await asyncio.to_thread(lambda: asyncio.run(self._may_start(task, parents))):
            raise asyncio.CancelledError

    async def _may_start(self, task: Any, parents: list[Any]) -> bool:
        for name in parents:
            status = await self._status_of(canonical(name))
            if status is None:
                raise InputError(f"The task depends on task {str(name)[:80]!r}, which does not exist.")
            if status in _OPEN:
                await self._leave(task, status=TaskStatus.PENDING.value, error=None)
                return False
            if status != TaskStatus.COMPLETED:
                said = brief(f"Cancelled because its parent, task {name}, is {status}.")
                await self._leave(task, status=TaskStatus.CANCELLED.value, error=said)
                return False
        return True

    async def hand_over(self, task: Any) -> None:
        """Leaves a row to the workers of ours, out of the host's reach from now on. Raises CancelledError, always."""
        await asyncio.to_thread(lambda: asyncio.run(self._hand_over(task)))
        raise asyncio.CancelledError

    async def _hand_over(self, task: Any) -> None:
        async with self._open() as store:
            if not self._ready:
                await store.upgrade()
                self._ready = True
            async with store.writing() as connection:
                known = sa.select(ours.c.status, ours.c.worker).where(ours.c.id == task.id).with_for_update()
                beside = (await connection.execute(known)).first()
                mine = tasks.update().where(tasks.c.id == task.id, tasks.c.status == TaskStatus.RUNNING)
                if beside is not None and beside.status in ENDED:  # the host's mark came after all was done
                    await connection.execute(mine.values(status=beside.status))
                elif beside is None or beside.worker is None:
                    await connection.execute(mine.values(status=TaskStatus.PENDING.value, started_at=None))
            await take_in(store, Inbox(seen=task.id, swept=time.monotonic()))

    @asynccontextmanager
    async def _open(self) -> AsyncIterator[TaskStore]:
        """Open for a moment only: the host's worker has no end at which we could close it."""
        store = TaskStore(self._url)
        try:
            yield store
        finally:
            await store.close()

    async def _status_of(self, name: str) -> str | None:
        """A task's status by its id or its uuid. A host's retry is a new row, so the newest says it, or a completed one."""
        own = tasks.c.id == int(name) if name.isascii() and name.isdigit() and len(name) < 10 else sa.false()
        maybe = own | sa.cast(tasks.c.payload, sa.Text).contains(name, autoescape=True)
        query = sa.select(tasks.c.id, tasks.c.status, tasks.c.payload).where(maybe).order_by(tasks.c.id)
        async with self._open() as store, store.reading() as connection:
            rows = (await connection.execute(query)).all()
        found = [str(row.status) for row in rows if name in (str(row.id), _uuid_in(row.payload))]
        return TaskStatus.COMPLETED.value if TaskStatus.COMPLETED in found else next(reversed(found), None)

    async def _leave(self, task: Any, status: str, error: str | None) -> None:
        async with self._open() as store, store.writing() as connection:
            now = moment(await store.now(connection))
            values: dict[str, Any] = {"status": status, "error": error, "updated_at": now}
            if status == TaskStatus.PENDING:
                waiting = (await connection.execute(_WAITING)).scalar_one()
                pause = timedelta(seconds=PUT_OFF + PUT_OFF_EACH * waiting)
                values |= {"started_at": None, "scheduled_for": now + pause}
            else:
                values |= {"completed_at": now}
            mine = (tasks.c.id == task.id) & (tasks.c.status == TaskStatus.RUNNING)
            await connection.execute(tasks.update().where(mine).values(**values))


def _uuid_in(payload: object) -> str:
    said = payload.get("task_uuid") if isinstance(payload, dict) else None
    return canonical(said) if isinstance(said, str) else ""
