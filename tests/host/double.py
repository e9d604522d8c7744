"""A host like the one whose table we share, written from what was seen of it: its enums, its dataclass that every row
must fit, its queue that swallows what the database says, and its worker that takes any pending row. Only the pauses are
shorter. `source.py` loads the real one where its source is at hand."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import Any, LiteralString
from uuid import uuid4

import psycopg
import redis.asyncio
from psycopg.rows import dict_row

logger = logging.getLogger(__name__)
PAUSE, REST = 0.05, 0.2

# The table as it was deployed: not the one of the host's own DDL, which none of its inserts would fit.
DEPLOYED: LiteralString = """
CREATE TABLE echo_tasks (
    id SERIAL PRIMARY KEY, name VARCHAR(255) NOT NULL, task_type VARCHAR(50) NOT NULL, priority INTEGER NOT NULL,
    status VARCHAR(20) NOT NULL, payload JSONB NOT NULL, created_at TIMESTAMP WITH TIME ZONE NOT NULL,
    updated_at TIMESTAMP WITH TIME ZONE NOT NULL, scheduled_for TIMESTAMP WITH TIME ZONE,
    started_at TIMESTAMP WITH TIME ZONE, completed_at TIMESTAMP WITH TIME ZONE, retries INTEGER DEFAULT 0,
    max_retries INTEGER DEFAULT 3, timeout INTEGER DEFAULT 300, result JSONB, error TEXT,
    dependencies JSONB DEFAULT '[]', creator VARCHAR(100) DEFAULT 'echo_autonomous'
)
"""


class TaskPriority(Enum):
    URGENT = 1
    HIGH = 2
    NORMAL = 3
    LOW = 4
    SCHEDULED = 5


class TaskStatus(Enum):
    PENDING = "pending"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    RETRYING = "retrying"


class TaskType(Enum):
    MONITORING = "monitoring"
    ANALYSIS = "analysis"
    USER_REQUEST = "user_request"
    LORA_GENERATION = "LORA_GENERATION"
    LORA_TAGGING = "LORA_TAGGING"
    LORA_TRAINING = "LORA_TRAINING"


@dataclass
class Task:
    """Every column of the table and not one more: a row with another column is a TypeError."""

    id: Any
    name: str
    task_type: TaskType
    priority: TaskPriority
    status: TaskStatus
    payload: dict[str, Any]
    created_at: datetime
    updated_at: datetime
    scheduled_for: datetime | None = None
    started_at: datetime | None = None
    completed_at: datetime | None = None
    retries: int = 0
    max_retries: int = 3
    timeout: int = 300
    result: dict[str, Any] | None = None
    error: str | None = None
    dependencies: list[str] | None = None
    creator: str = "echo_autonomous"

    def __post_init__(self) -> None:
        self.dependencies = self.dependencies or []

    @classmethod
    def from_dict(cls, row: dict[str, Any]) -> Task:
        row["task_type"] = TaskType(row["task_type"])
        row["priority"] = TaskPriority(row["priority"])
        row["status"] = TaskStatus(row["status"])
        return cls(**row)


def create_monitoring_task(name: str, target: str, check_type: str) -> Task:
    payload = {"target": target, "check_type": check_type}
    now = datetime.now()
    pending = (TaskPriority.NORMAL, TaskStatus.PENDING)
    return Task(str(uuid4()), name, TaskType.MONITORING, *pending, payload, now, now)


class TaskQueue:
    """Blocks the loop with every query and logs each failure instead of raising it."""

    def __init__(
        self, redis_url: str = "redis://localhost:6379/0", db_config: dict[str, Any] | None = None
    ) -> None:
        self.redis_url, self.db_config = redis_url, db_config or {}
        self.redis_client: redis.asyncio.Redis | None = None

    async def initialize(self) -> None:
        try:
            self.redis_client = redis.asyncio.from_url(self.redis_url)
            await self.redis_client.ping()
        except Exception as error:
            logger.warning("no Redis: %s", error)
            self.redis_client = None

    def _connect(self) -> psycopg.Connection[Any]:
        config = {"dbname" if key == "database" else key: value for key, value in self.db_config.items()}
        return psycopg.connect(**config)

    async def add_task(self, task: Any) -> bool:
        try:
            self._insert(task)
            if self.redis_client is not None:
                await self.redis_client.lpush(f"echo_tasks:{task.priority.value}", task.id)
        except Exception as error:
            logger.error("not added: %s", error)
            return False
        return True

    def _insert(self, task: Any) -> None:
        values = (
            task.name, task.task_type.value, task.priority.value, task.status.value, json.dumps(task.payload),
            task.created_at, task.updated_at, task.scheduled_for, task.started_at, task.completed_at, task.retries,
            task.max_retries, task.timeout, json.dumps(task.result) if task.result else None, task.error,
            json.dumps(task.dependencies), task.creator,
        )  # fmt: skip
        statement = (
            "INSERT INTO echo_tasks (name, task_type, priority, status, payload, created_at, updated_at, scheduled_for, "
            "started_at, completed_at, retries, max_retries, timeout, result, error, dependencies, creator) "
            f"VALUES ({', '.join(['%s'] * len(values))}) RETURNING id"
        )
        try:
            with self._connect() as connection:
                connection.execute(statement, values)
        except Exception as error:  # and whoever added the task is told that all is well
            logger.error("not stored: %s", error)

    async def get_next_task(self) -> Task | None:
        if self.redis_client is not None:
            for priority in TaskPriority:
                popped = await self.redis_client.rpop(f"echo_tasks:{priority.value}")
                if popped:
                    return self._read("SELECT * FROM echo_tasks WHERE id = %s", (popped.decode(),))
        return self._read(
            "SELECT * FROM echo_tasks WHERE status = 'pending' AND (scheduled_for IS NULL OR scheduled_for <= NOW()) "
            "ORDER BY priority ASC, created_at ASC LIMIT 1",
            (),
        )

    def _read(self, query: str, values: tuple[Any, ...]) -> Task | None:
        try:
            with self._connect() as connection:
                row = connection.cursor(row_factory=dict_row).execute(query, values).fetchone()
            return None if row is None else Task.from_dict(row)
        except Exception as error:
            logger.error("not read: %s", error)
            return None

    async def update_task_status(
        self, task_id: Any, status: TaskStatus, result: Any = None, error: str | None = None
    ) -> None:
        ended = status in (TaskStatus.COMPLETED, TaskStatus.FAILED, TaskStatus.CANCELLED)
        when = "started_at" if status is TaskStatus.RUNNING else "completed_at"
        now = datetime.now()
        with contextlib.suppress(Exception), self._connect() as connection:
            connection.execute(
                "UPDATE echo_tasks SET status = %s, updated_at = %s WHERE id = %s",
                (status.value, now, task_id),
            )
            if ended or status is TaskStatus.RUNNING:
                connection.execute(f"UPDATE echo_tasks SET {when} = %s WHERE id = %s", (now, task_id))
            if status is not TaskStatus.RUNNING:
                kept = json.dumps(result) if result else None
                connection.execute(
                    "UPDATE echo_tasks SET result = %s, error = %s WHERE id = %s", (kept, error, task_id)
                )


class BackgroundWorker:
    """Marks a row as running whoever has it, awaits its handler, and adds a second row for each retry."""

    def __init__(self, task_queue: TaskQueue, max_concurrent_tasks: int = 5) -> None:
        self.task_queue, self.max_concurrent_tasks = task_queue, max_concurrent_tasks
        self.task_handlers: dict[TaskType, Callable[[Task], Awaitable[Any]]] = {}
        self.current_tasks: dict[Any, asyncio.Task[None]] = {}
        self.running = False
        self._loop: asyncio.Task[None] | None = None

    def register_handler(self, task_type: TaskType, handler: Callable[[Task], Awaitable[Any]]) -> None:
        self.task_handlers[task_type] = handler

    async def start(self) -> None:
        self.running = True
        await self.task_queue.initialize()
        self.register_handler(TaskType.MONITORING, self._look)
        self.register_handler(TaskType.ANALYSIS, self._look)
        for kind in (TaskType.LORA_GENERATION, TaskType.LORA_TAGGING, TaskType.LORA_TRAINING):
            self.register_handler(kind, self._pretend)
        self._loop = asyncio.create_task(self._work())

    async def stop(self) -> None:
        self.running = False
        if self._loop is not None:
            await self._loop
        await asyncio.gather(*self.current_tasks.values(), return_exceptions=True)

    async def _look(self, task: Task) -> dict[str, Any]:
        return {"status": "healthy", "payload": task.payload}

    async def _pretend(self, task: Task) -> dict[str, Any]:
        return {"status": "simulated"}

    async def _work(self) -> None:
        while self.running:
            self.current_tasks = {key: each for key, each in self.current_tasks.items() if not each.done()}
            if len(self.current_tasks) < self.max_concurrent_tasks:
                task = await self.task_queue.get_next_task()
                if task is None:
                    await asyncio.sleep(REST)
                else:
                    await self._begin(task)
            await asyncio.sleep(PAUSE)

    async def _begin(self, task: Task) -> None:
        if task.task_type not in self.task_handlers:
            said = f"No handler for task type: {task.task_type.value}"
            await self.task_queue.update_task_status(task.id, TaskStatus.FAILED, error=said)
            return
        await self.task_queue.update_task_status(task.id, TaskStatus.RUNNING)
        self.current_tasks[task.id] = asyncio.create_task(self._execute(task))

    async def _execute(self, task: Task) -> None:
        update, began = self.task_queue.update_task_status, time.time()
        try:
            data = await asyncio.wait_for(self.task_handlers[task.task_type](task), timeout=task.timeout)
            done = {
                "data": data,
                "execution_time": time.time() - began,
                "completed_by": "echo_background_worker",
            }
            await update(task.id, TaskStatus.COMPLETED, result=done)
        except TimeoutError:
            await update(task.id, TaskStatus.FAILED, error=f"Task timed out after {task.timeout} seconds")
        except Exception as error:
            if task.retries >= task.max_retries:
                await update(task.id, TaskStatus.FAILED, error=f"Max retries exceeded: {error}")
                return
            await update(task.id, TaskStatus.RETRYING, error=f"Attempt {task.retries + 1}: {error}")
            task.retries += 1
            task.status = TaskStatus.PENDING
            await self.task_queue.add_task(task)
