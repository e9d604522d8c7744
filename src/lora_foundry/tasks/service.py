"""What a worker process does: one worker until SIGTERM or SIGINT."""

from __future__ import annotations

import asyncio

from lora_foundry.processes import when_asked_to_end
from lora_foundry.settings import Settings
from lora_foundry.tasks.database import database_errors
from lora_foundry.tasks.store import TaskStore
from lora_foundry.tasks.worker import Worker, WorkerOptions


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
