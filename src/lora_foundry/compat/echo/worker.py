"""The old `BackgroundWorker`: awaits handlers in this process, for hosts that have their own. `lora-foundry
worker` needs none of this; it runs the stages itself."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

from sqlalchemy.exc import DBAPIError

from lora_foundry.compat.echo.queue import TaskQueue
from lora_foundry.compat.echo.task import Task, plain
from lora_foundry.domain.task import TaskStatus
from lora_foundry.errors import FoundryError

logger = logging.getLogger(__name__)
POLL = 0.5


class BackgroundWorker:
    """Takes tasks from a queue and awaits their handlers, a few at once."""

    def __init__(self, task_queue: TaskQueue, max_concurrent_tasks: int = 5) -> None:
        self.task_queue = task_queue
        self.max_concurrent_tasks = max_concurrent_tasks
        self.task_handlers: dict[str, Callable[[Task], Awaitable[Any]]] = {}
        self._loop: asyncio.Task[None] | None = None
        self._running: set[asyncio.Task[None]] = set()

    def register_handler(self, task_type: Any, handler: Callable[[Task], Awaitable[Any]]) -> None:
        """`handler` is awaited with each task of that type; the last one registered counts."""
        self.task_handlers[str(plain(task_type)).lower()] = handler

    async def start(self) -> None:
        """Begins to take tasks and returns."""
        if self._loop is None:
            self._loop = asyncio.create_task(self._take())

    async def stop(self) -> None:
        """Stops taking tasks, cancels the handlers and gives their tasks back."""
        tasks = [*self._running, *([self._loop] if self._loop else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._loop = None

    async def _take(self) -> None:
        while True:
            try:
                full = len(self._running) >= self.max_concurrent_tasks
                task = None if full else await self.task_queue.get_next_task()
            except (DBAPIError, OSError) as error:
                logger.warning("The task database does not answer: %s", error)
                task = None
            if task is None:
                await asyncio.sleep(POLL)
                continue
            running = asyncio.create_task(self._handle(task))
            self._running.add(running)
            running.add_done_callback(self._running.discard)

    async def _handle(self, task: Task) -> None:
        update, number = self.task_queue.update_task_status, task.id
        kind = str(plain(task.task_type))
        handler = self.task_handlers.get(kind.lower())
        if handler is None:
            await update(number, TaskStatus.FAILED, error=f"No handler is registered for {kind}.")
            return
        started = time.monotonic()
        try:
            data = await asyncio.wait_for(handler(task), task.timeout)
        except asyncio.CancelledError:
            await update(number, TaskStatus.PENDING)
            raise
        except TimeoutError:
            await update(number, TaskStatus.RETRYING, error=f"The attempt took longer than {task.timeout} s.")
        except Exception as error:
            again = not isinstance(error, FoundryError) or error.retryable
            await update(number, TaskStatus.RETRYING if again else TaskStatus.FAILED, error=str(error))
        else:
            seconds = round(time.monotonic() - started, 3)
            result = {"data": data, "execution_time": seconds, "completed_by": "lora-foundry"}
            await update(number, TaskStatus.COMPLETED, result=result)
