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
from lora_foundry.errors import InputError, error_of
from lora_foundry.files.paths import task_log
from lora_foundry.settings import Settings
from lora_foundry.stage_job import ENTRY
from lora_foundry.tasks.children import Child, Job, run_alone
from lora_foundry.tasks.payloads import prepare, recognise
from lora_foundry.tasks.recovery import Timing

Handler = Callable[[Any], Awaitable[Any]]
LONGEST = 24 * 3600
HEARTBEAT, PATIENCE = Timing().heartbeat, Timing().patience


class HasHandlers(Protocol):
    """Any worker of the host's kind."""

    def register_handler(self, task_type: Any, handler: Any) -> object: ...


def register_lora_handlers(background_worker: HasHandlers, settings: Settings | None = None) -> None:
    """Registers our handlers: the host's worker runs LoRA tasks, and no worker of ours does. Call it after the host's
    `start`, which registers handlers of its own.

    A `user_request` that is not ours goes to the handler that was registered for it before.
    """
    chosen, table = settings or Settings(), HostTable.of(background_worker)

    def handler(kind: TaskType) -> Handler:
        async def handle(task: Any) -> Any:
            if table is not None:
                await table.wait_for_parents(task)
            recognised = recognise(kind, task.payload) or "unknown"
            work = await asyncio.to_thread(prepare, recognised, task.payload, chosen)
            log = task_log(chosen.home, getattr(task, "id", None) or 0)
            timeout = getattr(task, "timeout", None) or LONGEST
            return await run_child(Child(log, lambda event: None), work.job(chosen), timeout)

        return handle

    _register(background_worker, handler)


def leave_lora_tasks(background_worker: HasHandlers) -> None:
    """Lets workers of ours run LoRA tasks beside the host's worker: what that takes of ours before they have seen it, it
    hands over. Call it after the host's `start`. Raises InputError for a worker whose queue names no database.
    """
    table = HostTable.of(background_worker)
    if table is None:
        raise InputError(
            "The worker's task_queue has no db_config, so there is no table to leave its tasks in."
        )

    def handler(kind: TaskType) -> Handler:
        return table.hand_over

    _register(background_worker, handler)


def _register(worker: HasHandlers, make: Callable[[TaskType], Handler]) -> None:
    for kind in TaskType:
        key = _host_key(worker, kind)
        if kind is TaskType.USER_REQUEST:
            worker.register_handler(key, _of_ours(make(kind), _registered(worker, key)))
        else:
            worker.register_handler(key, make(kind))


def _of_ours(handler: Handler, earlier: Handler | None) -> Handler:
    """For user_requests: those that are ours by their payload; the others go where they went before."""

    async def handle(task: Any) -> Any:
        if recognise(TaskType.USER_REQUEST, task.payload) is not None:
            return await handler(task)
        if earlier is None:
            raise InputError("The user_request is no LoRA task, and nothing else handles it.")
        return await earlier(task)

    return handle


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


async def run_child(child: Child, work: dict[str, Any], timeout: float) -> dict[str, Any]:
    """Runs a job with signs of life from this process; raises what its process raised where it fails."""
    outcome = await run_alone(child, Job(ENTRY, work, PATIENCE, timeout), HEARTBEAT)
    if outcome.result is None:
        raise error_of(outcome.kind, outcome.error, outcome.permanent)
    return outcome.result
