"""What a worker process does: one worker until SIGTERM or SIGINT."""

from __future__ import annotations

import asyncio
import signal

from lora_foundry.settings import Settings
from lora_foundry.tasks.ledger import Ledger
from lora_foundry.tasks.worker import Worker, WorkerOptions


def serve(url: str, settings: Settings, options: WorkerOptions) -> None:
    """Runs a worker in this process until it is asked to end."""
    asyncio.run(_serve(url, settings, options))


async def _serve(url: str, settings: Settings, options: WorkerOptions) -> None:
    ledger = Ledger(url)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    try:
        await Worker(ledger, settings, options).run(stop)
    finally:
        await ledger.close()
