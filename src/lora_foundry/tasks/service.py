"""What a worker process does: one worker until SIGTERM or SIGINT; and on a machine with several GPUs, one such process
for each of them."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Mapping, Sequence

from sqlalchemy.exc import SQLAlchemyError

from lora_foundry.processes import ask_to_end, own_group, when_asked_to_end
from lora_foundry.settings import Settings
from lora_foundry.tasks.database import database_errors
from lora_foundry.tasks.store import TaskStore
from lora_foundry.tasks.worker import Worker, WorkerOptions

logger = logging.getLogger(__name__)
PAUSE = 5.0
LOOK = 5.0


def serve(url: str, settings: Settings, options: WorkerOptions, until_idle: float | None = None) -> None:
    """Runs a worker in this process until it is asked to end, or no task has waited or run anywhere for `until_idle`
    seconds."""
    asyncio.run(_serve(url, settings, options, until_idle))


async def _serve(url: str, settings: Settings, options: WorkerOptions, until_idle: float | None) -> None:
    store = TaskStore(url)
    stop = asyncio.Event()
    when_asked_to_end(stop.set)
    watch = None if until_idle is None else asyncio.create_task(_end_when_idle(store, until_idle, stop))
    try:
        with database_errors(store.url):
            await Worker(store, settings, options).run(stop)
    finally:
        if watch is not None:
            watch.cancel()
            await asyncio.gather(watch, return_exceptions=True)
        await store.close()


async def _end_when_idle(store: TaskStore, seconds: float, stop: asyncio.Event) -> None:
    """Sets `stop` when nothing of ours has waited or run for that long. A row that waits for its time counts as waiting: it
    is somebody's wish. A database that does not answer says nothing."""
    busy = time.monotonic()
    while not stop.is_set():
        await asyncio.sleep(min(LOOK, max(seconds / 4, 0.1)))
        try:
            if await store.is_unfinished():
                busy = time.monotonic()
        except (SQLAlchemyError, OSError):
            busy = time.monotonic()
        if time.monotonic() - busy >= seconds:
            logger.info("Nothing to do for %g s; this worker ends", seconds)
            stop.set()


def serve_each(commands: Sequence[tuple[Sequence[str], Mapping[str, str]]], may_end: bool = False) -> None:
    """Keeps one process for each command, with its environment, until this one is asked to end; then they are asked. How
    many attempts a worker runs in a lane is the queue's, the same for every worker, so a second GPU is a second worker.
    may_end: one that ends with exit code 0 had nothing to do, and is not started again."""
    asyncio.run(_serve_each(commands, may_end))


async def _serve_each(commands: Sequence[tuple[Sequence[str], Mapping[str, str]]], may_end: bool) -> None:
    stop = asyncio.Event()
    when_asked_to_end(stop.set)
    await asyncio.gather(*(_keep(command, environment, stop, may_end) for command, environment in commands))


async def _keep(
    command: Sequence[str], environment: Mapping[str, str], stop: asyncio.Event, may_end: bool
) -> None:
    """Starts a process again whenever it ends, until it is to."""
    asked = asyncio.create_task(stop.wait())
    while not stop.is_set():
        process = await asyncio.create_subprocess_exec(
            *command, env={**os.environ, **environment}, **own_group()
        )
        ended = asyncio.create_task(process.wait())
        await asyncio.wait({ended, asked}, return_when=asyncio.FIRST_COMPLETED)
        if stop.is_set():
            ask_to_end(process)
            await ended
            return
        if may_end and ended.result() == 0:
            asked.cancel()
            return
        logger.warning("A worker ended with exit code %s; it is started again.", ended.result())
        await asyncio.wait({asked}, timeout=PAUSE)
