"""What our handlers ask of the table of a host whose own worker runs them. That worker takes any pending row, dependencies
or not, so a child that came too early is put off in the table and comes again, and one whose parent failed ends there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import sqlalchemy as sa

from lora_foundry.compat.echo.queue import database_of
from lora_foundry.compat.echo.task import canonical
from lora_foundry.domain.task import TaskStatus
from lora_foundry.errors import InputError, brief
from lora_foundry.tasks.ledger import Ledger
from lora_foundry.tasks.schema import moment, tasks

PUT_OFF = 10.0
_OPEN = {status.value for status in (TaskStatus.PENDING, TaskStatus.RUNNING, TaskStatus.RETRYING)}


class HostTable:
    """The shared table, read and written by the contract's columns alone."""

    def __init__(self, url: str) -> None:
        self._url = url

    @classmethod
    def of(cls, worker: object) -> HostTable | None:
        """The table that a host's worker works on; None where it is no host's, and looks at dependencies itself."""
        config = getattr(getattr(worker, "task_queue", None), "db_config", None)
        return cls(database_of(config)) if isinstance(config, dict) else None

    async def wait_for_parents(self, task: Any) -> None:
        """Returns where all parents are completed.

        Otherwise raises CancelledError, the one way out of a host's worker that leaves the row as it was written here:
        put off while a parent is at work, cancelled where one failed. Raises InputError for a parent that is not there.
        """
        parents = getattr(task, "dependencies", None)
        if not isinstance(parents, list) or not parents:
            return
        for name in parents:
            status = await self._status_of(canonical(name))
            if status is None:
                raise InputError(f"The task depends on task {str(name)[:80]!r}, which does not exist.")
            if status in _OPEN:
                await self._leave(task, status=TaskStatus.PENDING.value, error=None)
            if status != TaskStatus.COMPLETED:
                said = brief(f"Cancelled because its parent, task {name}, is {status}.")
                await self._leave(task, status=TaskStatus.CANCELLED.value, error=said)

    @asynccontextmanager
    async def _open(self) -> AsyncIterator[Ledger]:
        """Open for a moment only: the host's worker has no end at which we could close it."""
        ledger = Ledger(self._url)
        try:
            yield ledger
        finally:
            await ledger.close()

    async def _status_of(self, name: str) -> str | None:
        """A task's status by its id or its uuid. A host's retry is a new row, so the newest says it, or a completed one."""
        own = tasks.c.id == int(name) if name.isascii() and name.isdigit() and len(name) < 10 else sa.false()
        maybe = own | sa.cast(tasks.c.payload, sa.Text).contains(name, autoescape=True)
        query = sa.select(tasks.c.id, tasks.c.status, tasks.c.payload).where(maybe).order_by(tasks.c.id)
        async with self._open() as ledger, ledger.reading() as connection:
            rows = (await connection.execute(query)).all()
        found = [str(row.status) for row in rows if name in (str(row.id), _uuid_in(row.payload))]
        return TaskStatus.COMPLETED.value if TaskStatus.COMPLETED in found else next(reversed(found), None)

    async def _leave(self, task: Any, status: str, error: str | None) -> None:
        async with self._open() as ledger, ledger.writing() as connection:
            now = moment(await ledger.now(connection))
            values: dict[str, Any] = {"status": status, "error": error, "updated_at": now}
            if status == TaskStatus.PENDING:
                values |= {"started_at": None, "scheduled_for": now + timedelta(seconds=PUT_OFF)}
            else:
                values |= {"completed_at": now}
            mine = (tasks.c.id == task.id) & (tasks.c.status == TaskStatus.RUNNING)
            await connection.execute(tasks.update().where(mine).values(**values))
        raise asyncio.CancelledError


def _uuid_in(payload: object) -> str:
    said = payload.get("task_uuid") if isinstance(payload, dict) else None
    return canonical(said) if isinstance(said, str) else ""
