"""The queues: DBOS hands attempts to workers. Each attempt is a durable workflow in the queue of its lane, named by the
row's lease; DBOS gives it to one worker that has room, the most urgent first, after a pause where it is told to wait,
and ends it where it is cancelled. What a row is and whether an attempt may write to it is decided by the task tables
alone, so an attempt that the tables no longer know ends at once, however it came to be started."""

from __future__ import annotations

import asyncio
import logging
import re
import sqlite3
from collections.abc import Callable, Coroutine, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import cached_property, partial
from typing import Any, NamedTuple, Protocol
from uuid import uuid4

import sqlalchemy as sa
from dbos import DBOS, DBOSClient, DBOSConfig, DBOSPortableJSONSerializer, EnqueueOptions
from dbos import error as dbos_error
from sqlalchemy.ext.asyncio import AsyncConnection

from lora_foundry.tasks.database import (
    ASLEEP_SECONDS,
    alone,
    connect_arguments,
    on_sqlite_connect,
    sync_url,
)

APPLICATION = "lora-foundry"
VERSION = (
    "1"  # of what a workflow is given and does; an upgrade that changes neither goes on with what is queued
)
WORKFLOW = "attempt"
PART = 500
# Connections of one worker's engine at most; by its own default 20, which a worker never needs.
POOL = 5
_LIVE = ["ENQUEUED", "DELAYED", "PENDING"]
_ENDED = ["SUCCESS", "ERROR", "CANCELLED", "MAX_RECOVERY_ATTEMPTS_EXCEEDED"]
_LEASE = re.compile(r"task-(\d+)-[0-9a-f]{32}")

Handler = Callable[[int, str], Coroutine[Any, Any, str]]
# DBOS wants functions that are registered at import, and has one instance a process: what they do here, and on which loop,
# is in this.
_handlers: list[tuple[Handler, asyncio.AbstractEventLoop]] = []


@DBOS.step(name=WORKFLOW, preemptible=True)
async def _work(task_id: int, lease: str) -> str:
    handler, loop = _handlers[-1]
    return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(handler(task_id, lease), loop))


@DBOS.workflow(name=WORKFLOW)
async def _attempt(task_id: int, lease: str) -> str:
    return await _work(task_id, lease)


class Entry(NamedTuple):
    """An attempt to be queued. queue: its name. priority: lower is sooner. delay: seconds."""

    task_id: int
    lease: str
    queue: str
    priority: int
    delay: float


class Queues(Protocol):
    """What admission and fail-over need of the engine."""

    shared: bool
    """Whether a transaction of the task database can hold what is queued, too."""

    async def put(self, entries: Sequence[Entry], connection: AsyncConnection | None = None) -> None: ...

    async def cancel(self, leases: Sequence[str]) -> None: ...

    async def live(self, leases: Sequence[str]) -> set[str]: ...

    async def taken(self) -> list[str]: ...

    async def held_by(self, worker: str) -> list[str]: ...

    async def remove(self, queue: str) -> None: ...


def new_lease(task_id: int) -> str:
    """The name of one attempt, which no other ever had: a result of an earlier one is never replayed."""
    return f"task-{task_id}-{uuid4().hex}"


def queue_of(lane: str, worker: str | None = None) -> str:
    """The name of a lane's queue; of one that a single worker listens to, where it serves one pipeline."""
    return f"{APPLICATION}-{worker or lane}"


class Engine:
    """DBOS on one task database: in its own schema there on PostgreSQL, in a file beside it on SQLite."""

    def __init__(self, url: sa.URL) -> None:
        self.shared = url.get_backend_name() != "sqlite"
        self._tasks_url = url
        plain = sync_url(url)
        self._url = plain if self.shared else plain.set(database=f"{plain.database}.engine")

    @cached_property
    def _database(self) -> sa.Engine:
        engine = sa.create_engine(self._url, connect_args=connect_arguments(self._url), pool_pre_ping=True)
        if not self.shared:
            sa.event.listen(engine, "connect", _on_sqlite_connect)
        return engine

    @cached_property
    def _client(self) -> DBOSClient:
        return DBOSClient(
            system_database_engine=self._database,
            serializer=DBOSPortableJSONSerializer(),
            application_name=APPLICATION,
            retry_connection_errors=False,
        )

    async def launch(
        self, worker: str, queues: Mapping[str, int], poll: float, handler: Handler, log_level: str
    ) -> None:
        """Starts DBOS in this process, listening to queues: how many attempts of each run at once here. They are looked at
        every `poll` seconds, and attempts run on the caller's loop."""
        config = DBOSConfig(
            name=APPLICATION,
            executor_id=worker,
            application_version=VERSION,
            serializer=DBOSPortableJSONSerializer(),
            log_level=log_level,
            notification_coalesce_sec=0.1,  # of streams; the default wakes a thread 100 times a second
            system_database_url=self._url.render_as_string(hide_password=False),
            sys_db_idle_transaction_timeout_sec=ASLEEP_SECONDS,
            sys_db_pool_size=POOL,
        )
        if not self.shared:  # as an engine, since a path may hold what means something in an address
            config["system_database_engine"] = self._database
        _handlers.append((handler, asyncio.get_running_loop()))
        # In a thread: its first start makes indexes, which waits for every transaction that is open, ours too.
        await asyncio.to_thread(self._launch, config, queues, poll)

    def _launch(self, config: DBOSConfig, queues: Mapping[str, int], poll: float) -> None:
        DBOS(config=config)
        DBOS.listen_queues(list(queues))
        logging.getLogger("dbos").addFilter(_is_no_cancelling)
        with alone(self._tasks_url):
            DBOS.launch()
        for name, number in queues.items():
            DBOS.register_queue(
                name, worker_concurrency=number, polling_interval_sec=poll, on_conflict="always_update"
            )

    async def stop(self) -> None:
        """Ends DBOS in this process; attempts that still run are not waited for."""
        await asyncio.to_thread(partial(DBOS.destroy, workflow_completion_timeout_sec=0))
        _handlers.clear()

    def close(self) -> None:
        if "_client" in self.__dict__:
            self._client.destroy()
        if "_database" in self.__dict__:
            self._database.dispose()

    async def put(self, entries: Sequence[Entry], connection: AsyncConnection | None = None) -> None:
        """Queues attempts, in the caller's transaction where there is one."""
        if connection is not None:
            await connection.run_sync(self._put, entries)
        elif entries:
            await asyncio.to_thread(self._put_alone, entries)

    def _put_alone(self, entries: Sequence[Entry]) -> None:
        with self._database.begin() as connection:
            self._put(connection, entries)

    def _put(self, connection: sa.Connection, entries: Sequence[Entry]) -> None:
        for entry in entries:
            options = EnqueueOptions(
                workflow_name=WORKFLOW,
                workflow_id=entry.lease,
                queue_name=entry.queue,
                app_version=VERSION,
                priority=entry.priority + 1,  # DBOS counts from 1
            )
            if entry.delay > 0:
                options["delay_seconds"] = entry.delay
            self._client.enqueue_in_transaction(connection, options, entry.task_id, entry.lease)

    async def cancel(self, leases: Sequence[str]) -> None:
        """Takes attempts out of their queues, and ends those that run within a second."""
        for part in _parts(leases):
            await self._client.cancel_workflows_async(part)

    async def live(self, leases: Sequence[str]) -> set[str]:
        """Those of the attempts that are queued or run."""
        found: set[str] = set()
        for part in _parts(leases):
            rows = await self._client.list_workflows_async(
                workflow_ids=part, status=_LIVE, load_input=False, load_output=False
            )
            found |= {row.workflow_id for row in rows}
        return found

    async def taken(self) -> list[str]:
        """The attempts that workers have taken out of their queues and not ended, of all workers."""
        rows = await self._client.list_workflows_async(status="PENDING", load_input=False, load_output=False)
        return [row.workflow_id for row in rows if _LEASE.fullmatch(row.workflow_id)]

    async def held_by(self, worker: str) -> list[str]:
        """The attempts that a worker has taken out of a queue and not ended."""
        rows = await self._client.list_workflows_async(
            executor_id=worker, status="PENDING", load_input=False, load_output=False
        )
        return [row.workflow_id for row in rows if _LEASE.fullmatch(row.workflow_id)]

    async def remove(self, queue: str) -> None:
        await self._client.delete_queue_async(queue)

    async def prune(self, older_than: timedelta) -> None:
        """Forgets attempts that ended before that."""
        before = (datetime.now(UTC) - older_than).isoformat()
        while rows := await self._client.list_workflows_async(
            status=_ENDED, completed_before=before, limit=PART, load_input=False, load_output=False
        ):
            await self._client.delete_workflows_async([row.workflow_id for row in rows])


def _is_no_cancelling(record: logging.LogRecord) -> bool:
    """Whether DBOS says more than that an attempt was cancelled, which it calls an error, with a traceback."""
    error = record.exc_info[1] if record.exc_info else None
    cancelled = (dbos_error.DBOSAwaitedWorkflowCancelledError, dbos_error.DBOSWorkflowCancelledError)
    return not isinstance(error, cancelled)


def _parts(leases: Sequence[str]) -> list[list[str]]:
    return [list(leases[start : start + PART]) for start in range(0, len(leases), PART)]


def _on_sqlite_connect(connection: sqlite3.Connection, record: object) -> None:
    """As DBOS makes its own connections: writers wait for one another. What a power cut takes from the newest writes, the
    task tables bring back."""
    on_sqlite_connect(connection, record)
    connection.isolation_level = "IMMEDIATE"
    connection.execute("PRAGMA foreign_keys=ON")
