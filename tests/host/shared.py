"""What the tests of living together do to the shared table: rows in, rows as text out, and waiting for ends."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg.rows import dict_row

from lora_foundry.settings import Settings
from lora_foundry.tasks.recovery import Timing
from lora_foundry.tasks.store import TaskStore
from lora_foundry.tasks.worker import Worker, WorkerOptions

JOBS = "tests.contract.engine_jobs:run"
QUICK = Timing(heartbeat=0.5, patience=4, dead_after=5, poll=0.5, queue=0.1, report=0.1, grace=1)
ENDED = ("completed", "failed", "cancelled")


@dataclass(frozen=True)
class Shared:
    """One table for two programs."""

    url: str
    config: dict[str, Any]
    settings: Settings

    def execute(self, statement: str, *values: Any) -> list[dict[str, Any]]:
        with psycopg.connect(self.url, autocommit=True) as connection:
            done = connection.cursor(row_factory=dict_row).execute(statement, values)  # type: ignore[arg-type]
            return done.fetchall() if done.description else []

    def insert(self, task_type: str, payload: object, **values: Any) -> int:
        columns = {"name": task_type, "task_type": task_type, "priority": 3, "status": "pending"} | values
        columns["payload"] = json.dumps(payload)
        names = ", ".join([*columns, "created_at", "updated_at"])
        marks = ", ".join(["%s"] * len(columns))
        statement = f"INSERT INTO echo_tasks ({names}) VALUES ({marks}, NOW(), NOW()) RETURNING id"
        return int(self.execute(statement, *columns.values())[0]["id"])

    def rows(self, condition: str = "TRUE") -> list[dict[str, Any]]:
        return self.execute(f"SELECT * FROM echo_tasks WHERE {condition} ORDER BY id")

    def image(self, condition: str = "TRUE") -> list[str]:
        """Rows byte by byte."""
        found = self.execute(f"SELECT echo_tasks::text AS row FROM echo_tasks WHERE {condition} ORDER BY id")
        return [each["row"] for each in found]

    def columns(self) -> list[str]:
        query = (
            "SELECT column_name, data_type FROM information_schema.columns WHERE table_name = 'echo_tasks'"
        )
        return [
            f"{row['column_name']} {row['data_type']}"
            for row in self.execute(query + " ORDER BY ordinal_position")
        ]

    async def until_ended(self, condition: str = "TRUE", seconds: float = 60) -> list[dict[str, Any]]:
        """The rows, once each has ended; a host's row that it tried again counts as ended."""
        end = time.monotonic() + seconds
        while True:
            rows = self.rows(condition)
            open_rows = [row for row in rows if row["status"] not in ENDED]
            if rows and not open_rows:
                return rows
            assert time.monotonic() < end, [
                (row["id"], row["name"], row["status"], row["error"]) for row in open_rows
            ]
            await asyncio.sleep(0.2)

    @asynccontextmanager
    async def our_worker(self) -> AsyncIterator[TaskStore]:
        """A worker of ours on the table, in a thread: a host that blocks its loop must not block ours, which may hold the
        very row that the host waits for."""
        store = TaskStore(self.url)
        await store.upgrade()
        stop = threading.Event()

        async def work() -> None:
            own, end = TaskStore(self.url), asyncio.Event()
            options = WorkerOptions(JOBS, {"gpu": 2, "cpu": 3}, QUICK)
            running = asyncio.create_task(Worker(own, self.settings, options).run(end))
            while not stop.is_set() and not running.done():
                await asyncio.sleep(0.1)
            end.set()
            await running
            await own.close()

        thread = asyncio.create_task(asyncio.to_thread(lambda: asyncio.run(work())))
        try:
            yield store
        finally:
            stop.set()
            await thread
            await store.close()

    @asynccontextmanager
    async def host_worker(self, host: Any, redis_url: str = "redis://127.0.0.1:1/0") -> AsyncIterator[Any]:
        """The host's own worker, started."""
        worker = host.BackgroundWorker(host.TaskQueue(redis_url, dict(self.config)), max_concurrent_tasks=5)
        await worker.start()
        try:
            yield worker
        finally:
            await worker.stop()
            if worker.task_queue.redis_client is not None:
                await worker.task_queue.redis_client.aclose()
