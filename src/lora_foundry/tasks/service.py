"""What a worker process does: one worker until SIGTERM or SIGINT; and on a machine with several GPUs, one such process
for each of them."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Mapping, Sequence

from lora_foundry.processes import ask_to_end, own_group, when_asked_to_end
from lora_foundry.settings import Settings
from lora_foundry.tasks.database import database_errors
from lora_foundry.tasks.store import TaskStore
from lora_foundry.tasks.worker import Worker, WorkerOptions

logger = logging.getLogger(__name__)
PAUSE = 5.0


def serve(url: str, settings: Settings, options: WorkerOptions) -> None:
    """Runs a worker in this process until it is asked to end."""
    asyncio.run(_serve(url, settings, options))


async def _serve(url: str, settings: Settings, options: WorkerOptions) -> None:
    store = TaskStore(url)
    stop = asyncio.Event()
    when_asked_to_end(stop.set)
    try:
        with database_errors(store.url):
            await Worker(store, settings, options).run(stop)
    finally:
        await store.close()


def serve_each(commands: Sequence[tuple[Sequence[str], Mapping[str, str]]]) -> None:
    """Keeps one process for each command, with its environment, until this one is asked to end; then they are asked. How
    many attempts a worker runs in a lane is the queue's, the same for every worker, so a second GPU is a second worker."""
    asyncio.run(_serve_each(commands))


async def _serve_each(commands: Sequence[tuple[Sequence[str], Mapping[str, str]]]) -> None:
    stop = asyncio.Event()
    when_asked_to_end(stop.set)
    await asyncio.gather(*(_keep(command, environment, stop) for command, environment in commands))


async def _keep(command: Sequence[str], environment: Mapping[str, str], stop: asyncio.Event) -> None:
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
        logger.warning("A worker ended with exit code %s; it is started again.", ended.result())
        await asyncio.wait({asked}, timeout=PAUSE)
