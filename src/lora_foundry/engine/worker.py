"""A worker: takes rows as lanes are free, runs each attempt as a durable DBOS workflow around a child
process, and settles the row. It can be killed at any instruction; what it held is given back by the workers
that remain."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

from dbos import DBOS, DBOSConfig, SetWorkflowID
from sqlalchemy.exc import DBAPIError

from lora_foundry.domain.task import Task, TaskPriority
from lora_foundry.engine import recovery, signals
from lora_foundry.engine.admission import Admitted, admit
from lora_foundry.engine.announce import announce
from lora_foundry.engine.children import Child, Outcome
from lora_foundry.engine.database import sync_url
from lora_foundry.engine.ledger import Failure, Ledger
from lora_foundry.engine.payloads import prepare
from lora_foundry.engine.recovery import Timing
from lora_foundry.engine.redis_hints import RedisHints
from lora_foundry.engine.runner import STAGES
from lora_foundry.errors import FoundryError, InputError
from lora_foundry.ports import Notifier
from lora_foundry.settings import Settings

logger = logging.getLogger(__name__)
MOST_TASKS = 5
LOOK = 0.5
LONGEST_TIMEOUT = 30 * 24 * 3600

# DBOS wants functions that are registered at import; each finds its attempt here, by ticket.
_attempts: dict[str, Callable[[], Awaitable[str]]] = {}


@DBOS.step(name="attempt")
async def _attempt(ticket: str) -> str:
    return await _attempts[ticket]()


@DBOS.workflow(name="echo_task")
async def _echo_task(ticket: str, task_id: int) -> str:
    return await _attempt(ticket)


def visible_devices() -> int:
    """GPUs that a child will see, told without loading torch; 0 on a machine without."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return len([part for part in chosen.split(",") if part.strip() not in ("", "-1")])
    folder = Path("/proc/driver/nvidia/gpus")
    return len(list(folder.iterdir())) if folder.is_dir() else 0


def lanes_for(choice: str) -> dict[str, int]:
    """How many tasks run at once in each lane, for `gpu`, `cpu` or `all`."""
    gpu = max(1, visible_devices())
    cpu = max(1, MOST_TASKS - gpu)
    known = {"gpu": {"gpu": gpu}, "cpu": {"cpu": MOST_TASKS}, "all": {"gpu": gpu, "cpu": cpu}}
    if choice not in known:
        raise InputError(f"There is no lane {choice!r}; the lanes are gpu, cpu and all.")
    return known[choice]


@dataclass
class Running:
    """A row that this worker holds and the child that works on it."""

    admitted: Admitted
    child: Child
    news: dict[str, Any] | None = None
    cancel: bool = False
    starved: bool = False


class Worker:
    """Runs tasks until its stop event is set. One worker a process."""

    def __init__(
        self,
        ledger: Ledger,
        settings: Settings,
        *,
        lanes: Mapping[str, int] | None = None,
        timing: Timing | None = None,
        redis_url: str | None = None,
        entry: str = STAGES,
        notifier: Notifier | None = None,
    ) -> None:
        self.name = f"{socket.gethostname()}-{os.getpid()}-{uuid4().hex[:8]}"
        self._ledger, self._settings, self._entry = ledger, settings, entry
        self._notifier = notifier
        self._lanes = dict(lanes or lanes_for("all"))
        self._timing = timing or Timing()
        self._running: dict[str, Running] = {}
        self._carriers: set[asyncio.Task[None]] = set()
        self._wake = asyncio.Event()
        self._stopping = False
        self._last_beat = time.monotonic()
        self.hints = RedisHints(redis_url, ledger) if redis_url else None

    async def run(self, stop: asyncio.Event) -> None:
        """Works until `stop` is set, then gives running children `grace` seconds and hands the rest back."""
        await self._ledger.upgrade()
        await asyncio.to_thread(_launch, self._ledger, self.name)
        await self._beat_once()
        helpers = [asyncio.create_task(self._beats()), asyncio.create_task(self._look_for_cancels())]
        helpers.append(asyncio.create_task(signals.watch(self._ledger.url, self._wake.set)))
        if self.hints is not None:
            helpers.append(asyncio.create_task(self.hints.watch(self._wake.set)))
        waker = asyncio.create_task(_call_after(stop, self._wake.set))
        try:
            while not stop.is_set():
                self._wake.clear()
                try:
                    await self._admit()
                except (DBAPIError, OSError) as error:
                    logger.warning("The task database does not answer: %s", error)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), self._timing.poll)
        finally:
            await self._wind_up()
            for helper in (*helpers, waker):
                helper.cancel()
            await asyncio.gather(*helpers, waker, return_exceptions=True)
            with contextlib.suppress(DBAPIError, OSError):
                await recovery.sign_off(self._ledger, self.name)
            await asyncio.to_thread(partial(DBOS.destroy, workflow_completion_timeout_sec=0))

    async def _admit(self) -> None:
        held = [running.admitted.lane for running in self._running.values()]
        free = {lane: number - held.count(lane) for lane, number in self._lanes.items()}
        if not any(number > 0 for number in free.values()):
            return
        for admitted in await admit(self._ledger, self.name, free):
            log = self._settings.home / "logs" / "tasks" / f"{admitted.task.id}.log"
            running = Running(admitted, Child(log, lambda event: None))
            running.child.on_progress = partial(setattr, running, "news")
            self._running[admitted.ticket] = running
            carrier = asyncio.create_task(self._carry(running))
            self._carriers.add(carrier)
            carrier.add_done_callback(self._carriers.discard)

    async def _carry(self, running: Running) -> None:
        """One attempt as a workflow; frees the lane however it ends, and then says so to people."""
        admitted, ended = running.admitted, ""
        _attempts[admitted.ticket] = partial(self._attempt, running)
        try:
            with SetWorkflowID(workflow_id(admitted.task.id, admitted.ticket)):
                handle = await DBOS.start_workflow_async(_echo_task, admitted.ticket, admitted.task.id or 0)
            ended = await handle.get_result()
            logger.info("Task %s (%s): %s", admitted.task.id, admitted.task.name, ended)
        except Exception:
            logger.exception("Task %s was dropped; it is handed back", admitted.task.id)
            running.child.kill()
            with contextlib.suppress(DBAPIError, OSError):
                await self._ledger.hand_back(admitted.task.id or 0, admitted.ticket)
        finally:
            _attempts.pop(admitted.ticket, None)
            self._running.pop(admitted.ticket, None)
            self._wake.set()
        if self._notifier is not None:
            await announce(self._ledger, self._settings, self._notifier, admitted.task, ended)

    async def _attempt(self, running: Running) -> str:
        task = running.admitted.task
        reporter = asyncio.create_task(self._report(running))
        try:
            check_numbers(task)
            work = await asyncio.to_thread(prepare, running.admitted.kind, task.payload, self._settings)
            job = {
                "run": work.run.model_dump(mode="json"),
                "stages": work.stages,
                "settings": self._settings.model_dump(mode="json"),
            }
            outcome = await running.child.run(self._entry, job, self._timing.patience, task.timeout)
        except FoundryError as error:
            outcome = Outcome(error=str(error), permanent=not error.retryable)
        finally:
            reporter.cancel()
        return await self._settle(running, outcome)

    async def _settle(self, running: Running, outcome: Outcome) -> str:
        """Writes the end of an attempt to its row, trying for as long as the row can still be ours."""
        until = time.monotonic() + self._timing.dead_after
        while True:
            try:
                return await self._write_end(running, outcome)
            except (DBAPIError, OSError):
                if time.monotonic() > until:
                    raise
                await asyncio.sleep(LOOK)

    async def _write_end(self, running: Running, outcome: Outcome) -> str:
        task, ticket = running.admitted.task, running.admitted.ticket
        number = task.id or 0
        if outcome.result is not None:
            return "completed" if await self._ledger.complete(number, ticket, outcome.result) else "lost"
        if running.cancel:
            return "cancelled" if await self._ledger.cancelled(number, ticket) else "lost"
        if running.starved or (self._stopping and not outcome.permanent):
            return "handed back" if await self._ledger.hand_back(number, ticket) else "lost"
        failure = Failure(outcome.error, outcome.permanent, outcome.progressed)
        return await self._ledger.fail(task, ticket, failure) or "lost"

    async def _report(self, running: Running) -> None:
        """Writes news to the row and the workflow's stream, at most once per `report` seconds."""
        while True:
            await asyncio.sleep(self._timing.report)
            news, running.news = running.news, None
            if news is None:
                continue
            with contextlib.suppress(DBAPIError, OSError):
                admitted = running.admitted
                if not await self._ledger.report(admitted.task.id or 0, admitted.ticket, news):
                    running.child.kill()
                await DBOS.write_stream_async("progress", news)

    async def _look_for_cancels(self) -> None:
        """Kills the children of rows that somebody cancelled or that are no longer ours."""
        while True:
            await asyncio.sleep(LOOK)
            if not self._running:
                continue
            with contextlib.suppress(DBAPIError, OSError):
                for ticket in await self._ledger.cancel_requests(list(self._running)):
                    running = self._running.get(ticket)
                    if running is not None:
                        running.cancel = True
                        running.child.kill()

    async def _beats(self) -> None:
        while True:
            await asyncio.sleep(self._timing.beat)
            try:
                await self._beat_once()
                for lost in await recovery.take_over(self._ledger, self._timing.dead_after):
                    logger.warning("Task %s was given back: its worker is dead", lost.task_id)
                    self._wake.set()
                    with contextlib.suppress(Exception):  # a record that was never made need not be closed
                        await DBOS.cancel_workflow_async(workflow_id(lost.task_id, lost.ticket))
            except (DBAPIError, OSError) as error:
                logger.warning("No beat: the task database does not answer: %s", error)

    async def _beat_once(self) -> None:
        """Tells the database, and only then the children, that this worker lives."""
        if time.monotonic() - self._last_beat > self._timing.patience * 0.9:
            for running in self._running.values():  # we slept or were cut off, so they have killed themselves
                running.starved = True
        await recovery.beat(self._ledger, self.name, ",".join(self._lanes))
        self._last_beat = time.monotonic()
        for running in self._running.values():
            running.child.write("beat")

    async def _wind_up(self) -> None:
        """Lets children come to an end, then kills what is left and hands it back."""
        if self._carriers:
            await asyncio.wait(self._carriers, timeout=self._timing.grace)
        self._stopping = True
        for running in self._running.values():
            running.child.kill()
        if self._carriers:
            await asyncio.wait(self._carriers, timeout=self._timing.dead_after)


def workflow_id(task_id: int | None, ticket: str) -> str:
    """The engine's name of one attempt; the ticket keeps an old attempt's result from being replayed."""
    return f"echo-task-{task_id}-{ticket}"


def check_numbers(task: Task) -> None:
    """Raises InputError for numbers that mean nothing."""
    if task.priority not in tuple(TaskPriority):
        raise InputError(
            f"Priority {task.priority} does not exist; priorities are 1 (urgent) to 5 (scheduled)."
        )
    if not 0 < task.timeout <= LONGEST_TIMEOUT:
        raise InputError(f"A timeout of {task.timeout} s is not possible; it must be 1 to {LONGEST_TIMEOUT}.")
    if task.max_retries < 0:
        raise InputError(f"max_retries is {task.max_retries}; it must not be negative.")


def _launch(ledger: Ledger, name: str) -> None:
    """Starts DBOS: in the same database on PostgreSQL, in a file beside it on SQLite."""
    url = sync_url(ledger.url)
    if ledger.dialect == "sqlite":
        url = url.set(database=f"{url.database}.engine")
    DBOS(
        config=DBOSConfig(
            name="lora-foundry",
            system_database_url=url.render_as_string(hide_password=False),
            executor_id=name,
            application_version="1",
            log_level="ERROR",
        )
    )
    DBOS.listen_queues([])
    DBOS.launch()


async def _call_after(event: asyncio.Event, function: Callable[[], None]) -> None:
    await event.wait()
    function()
