"""The old `TaskQueue` over the store. It can also hand out tasks, to a loop of the host's; while it does, it
heartbeats like a worker, so that what it holds is given back if the process dies."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from datetime import timedelta
from typing import Any
from uuid import uuid4

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from lora_foundry.compat.echo.task import Task, canonical, from_row, status_of, to_row
from lora_foundry.domain.task import TaskStatus
from lora_foundry.errors import InputError
from lora_foundry.settings import Settings
from lora_foundry.tasks import recovery
from lora_foundry.tasks.admission import take
from lora_foundry.tasks.attempts import Admitted
from lora_foundry.tasks.pipelines import is_ours
from lora_foundry.tasks.redis_hints import push
from lora_foundry.tasks.store import Failure, TaskStore

_REDIS = ("redis://", "rediss://", "unix://")


class TaskQueue:
    """Adds, hands out and counts tasks. `initialize` it once.

    Without arguments it works on the database and the Redis of the settings. db_config is the host's way to name a
    database: `database`, `user`, `host`, `password`, `port`; the host's first argument, a Redis, is taken as one.
    """

    def __init__(
        self,
        database_url: str | None = None,
        redis_url: str | None = None,
        db_config: Mapping[str, Any] | None = None,
    ) -> None:
        settings = Settings()
        if database_url is not None and database_url.startswith(_REDIS):
            database_url, redis_url = None, database_url
        if db_config is not None:
            database_url = database_of(db_config)
        self.store = TaskStore(database_url or settings.task_database)
        self._redis_url = redis_url or settings.redis_url
        self._name = f"queue-{uuid4().hex[:12]}"
        self._held: dict[str, Admitted] = {}
        self._heartbeats: asyncio.Task[None] | None = None

    async def initialize(self) -> None:
        await self.store.upgrade()

    async def close(self) -> None:
        """Gives back what is still held."""
        for held in list(self._held.values()):
            await self.store.release(held.task.id or 0, held.lease)
        if self._heartbeats is not None:
            self._heartbeats.cancel()
            await asyncio.gather(self._heartbeats, return_exceptions=True)
            await recovery.forget(self.store, self._name)
        await self.store.close()

    async def add_task(self, task: Any) -> str:
        """Stores a task, ours or the host's own, and returns its uuid, by which it is found from now on.

        Raises InputError for a priority or status that does not exist.
        """
        return (await self.add_tasks(task))[0]

    async def add_tasks(self, *tasks: Any) -> list[str]:
        """Stores all of them or, where one cannot be stored, none."""
        rows = await self.store.add(*(to_row(task) for task in tasks))
        for row in rows:
            if self._redis_url is not None:
                await push(self._redis_url, row.priority, row.uuid)
        return [row.uuid for row in rows]

    async def get_next_task(self) -> Task | None:
        """The most urgent task whose parents are completed, now running and ours; None where there is none."""
        if self._heartbeats is None:
            await recovery.heartbeat(self.store, self._name, "all")
            self._heartbeats = asyncio.create_task(self._heartbeat())
        for lane in ("gpu", "cpu"):
            while held := await take(self.store, self._name, lane):
                row = await self.store.get(held.task.id or 0)
                try:
                    task = from_row(row)
                except InputError as error:  # a row by hand with numbers that mean nothing
                    await self.store.fail(row, held.lease, Failure(str(error), permanent=True))
                    continue
                self._held[str(row.id)] = held
                return task
        return None

    async def update_task_status(
        self, task_id: int | str, status: Any, result: Any = None, error: str | None = None
    ) -> bool:
        """Ends a task that `get_next_task` handed out, or cancels any; False where it was no longer this queue's."""
        task = await self.store.get(canonical(task_id))
        wanted = status_of(status)
        held = self._held.get(str(task.id))
        if held is None or wanted == TaskStatus.CANCELLED:
            if wanted != TaskStatus.CANCELLED:
                raise InputError(
                    f"Task {task.id} was not handed out by this queue, so it cannot be {wanted}."
                )
            await self.store.cancel(task.id or 0)
            return held is None or await self.store.cancelled(task.id or 0, held.lease)
        if wanted == TaskStatus.RUNNING:
            return True
        self._held = {name: other for name, other in self._held.items() if other is not held}
        if wanted == TaskStatus.COMPLETED:
            data = result if isinstance(result, dict) else {"data": result}
            return await self.store.complete(task.id or 0, held.lease, data)
        if wanted == TaskStatus.PENDING:
            return await self.store.release(task.id or 0, held.lease)
        failure = Failure(error or "The handler gave no reason.", permanent=wanted == TaskStatus.FAILED)
        return await self.store.fail(task, held.lease, failure) is not None

    async def get_task_stats(self) -> dict[str, int]:
        """Tasks of each status, and `total`."""
        counts = await self.store.counts()
        return counts | {"total": sum(counts.values())}

    async def cleanup_old_tasks(self, days: int = 7) -> int:
        """Deletes ended tasks of ours older than that; says how many."""
        return await self.store.prune(timedelta(days=days), is_ours)

    async def _heartbeat(self) -> None:
        while True:
            await asyncio.sleep(recovery.Timing().heartbeat)
            with contextlib.suppress(DBAPIError, OSError):
                await recovery.heartbeat(self.store, self._name, "all")


def database_of(config: Mapping[str, Any]) -> str:
    """The address of a database that is named as psycopg names it. Raises InputError."""
    try:
        port = int(config.get("port") or 5432)
    except (TypeError, ValueError):
        raise InputError(f"The database's port {str(config.get('port'))[:40]!r} is no number.") from None
    host = config.get("host") or ""
    socket = host.startswith("/")  # the folder of a Unix socket is no part of an address
    url = sa.URL.create(
        "postgresql",
        username=config.get("user"),
        password=config.get("password"),
        host=None if socket else host,
        port=None if socket else port,
        database=config.get("database") or config.get("dbname"),
        query={"host": host, "port": str(port)} if socket else {},
    )
    return url.render_as_string(hide_password=False)
