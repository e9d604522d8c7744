"""What a worker process does: one worker until SIGTERM or SIGINT, its log in words or as JSON lines."""

from __future__ import annotations

import asyncio
import json
import logging
import signal
from collections.abc import Callable, Mapping
from datetime import UTC, datetime

from lora_foundry.engine.ledger import Ledger
from lora_foundry.engine.recovery import Timing
from lora_foundry.engine.runner import STAGES
from lora_foundry.engine.worker import Worker
from lora_foundry.ports import Notifier
from lora_foundry.settings import Settings


class JsonLines(logging.Formatter):
    """A log line as one JSON object."""

    def format(self, record: logging.LogRecord) -> str:
        when = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line = {"time": when, "level": record.levelname.lower(), "logger": record.name}
        line["message"] = record.getMessage()
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def start_log(as_json: bool) -> None:
    """The log to stderr, ours from INFO, others' from WARNING."""
    handler = logging.StreamHandler()
    words = logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    handler.setFormatter(JsonLines() if as_json else words)
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.getLogger("lora_foundry").setLevel(logging.INFO)


def serve(
    url: str,
    settings: Settings,
    *,
    lanes: Mapping[str, int] | None = None,
    timing: Timing | None = None,
    redis_url: str | None = None,
    entry: str = STAGES,
    notifier: Notifier | None = None,
) -> None:
    """Runs a worker in this process until it is asked to end."""

    def make(ledger: Ledger) -> Worker:
        return Worker(
            ledger, settings, lanes=lanes, timing=timing, redis_url=redis_url, entry=entry, notifier=notifier
        )

    asyncio.run(_serve(url, make))


async def _serve(url: str, make: Callable[[Ledger], Worker]) -> None:
    ledger = Ledger(url)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    try:
        await make(ledger).run(stop)
    finally:
        await ledger.close()
