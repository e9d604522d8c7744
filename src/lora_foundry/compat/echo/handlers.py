"""Handlers for a host's own worker. Each runs the real stages in a child process and returns only when they
are done; the host's enum members are looked up by value, since a member of another enum is never found in its
table."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from lora_foundry.compat.echo.host_table import HostTable
from lora_foundry.domain.task import TaskType
from lora_foundry.errors import BackendError, InputError
from lora_foundry.files.paths import task_log
from lora_foundry.settings import Settings
from lora_foundry.stage_job import ENTRY
from lora_foundry.tasks.children import Child, Job
from lora_foundry.tasks.payloads import prepare, recognise
from lora_foundry.tasks.recovery import Timing

Handler = Callable[[Any], Awaitable[Any]]
LONGEST = 24 * 3600
BEAT, PATIENCE = Timing().beat, Timing().patience
_TYPES = tuple(kind for kind in TaskType if kind is not TaskType.USER_REQUEST)


class HasHandlers(Protocol):
    """Any worker of the host's kind."""

    def register_handler(self, task_type: Any, handler: Any) -> object: ...


def register_lora_handlers(background_worker: HasHandlers, settings: Settings | None = None) -> None:
    """Registers our handlers. Call it after the host's `start`, which registers handlers of its own.

    A `user_request` that is not ours goes to the handler that was registered for it before.
    """
    chosen, table = settings or Settings(), HostTable.of(background_worker)
    for kind in _TYPES:
        key = _host_key(background_worker, kind)
        background_worker.register_handler(key, _handler(kind, chosen, table, None))
    key = _host_key(background_worker, TaskType.USER_REQUEST)
    earlier = _registered(background_worker, key)
    background_worker.register_handler(key, _handler(TaskType.USER_REQUEST, chosen, table, earlier))


def _host_key(worker: HasHandlers, kind: TaskType) -> Any:
    """The host's own enum member of that value, or ours where the host has none."""
    host = getattr(sys.modules.get(type(worker).__module__), "TaskType", None)
    members = list(host) if host is not None else []
    return next((each for each in members if str(each.value).lower() == kind.lower()), kind)


def _registered(worker: HasHandlers, key: Any) -> Handler | None:
    for name in ("task_handlers", "handlers", "_handlers"):
        table = getattr(worker, name, None)
        if isinstance(table, dict):
            return table.get(key)
    return None


def _handler(kind: TaskType, settings: Settings, table: HostTable | None, earlier: Handler | None) -> Handler:
    async def handle(task: Any) -> Any:
        recognised = recognise(kind, task.payload)
        if recognised is None:
            if earlier is None:
                raise InputError("The user_request is no LoRA task, and nothing else handles it.")
            return await earlier(task)
        if table is not None:
            await table.wait_for_parents(task)
        work = await asyncio.to_thread(prepare, recognised, task.payload, settings)
        log = task_log(settings.home, getattr(task, "id", None) or 0)
        timeout = getattr(task, "timeout", None) or LONGEST
        return await run_child(Child(log, lambda event: None), work.job(settings), timeout)

    return handle


async def run_child(child: Child, work: dict[str, Any], timeout: float) -> dict[str, Any]:
    """Runs a job with signs of life from this process; raises InputError or BackendError where it fails."""

    async def beat() -> None:
        while True:
            await asyncio.sleep(BEAT)
            child.write("beat")

    beats = asyncio.create_task(beat())
    try:
        outcome = await child.run(Job(ENTRY, work, PATIENCE, timeout))
    finally:
        beats.cancel()
    if outcome.result is None:
        raise (InputError if outcome.permanent else BackendError)(outcome.error)
    return outcome.result
