"""Pages of runs that other hosts work at: where hosts share a storage and no folder, a run's files are fetched when somebody
looks at it, and what a person changed on a page is stored. Everything else reads the local folder, as ever."""

from __future__ import annotations

import asyncio
import logging
import time

from lora_foundry.errors import FoundryError
from lora_foundry.remote.access import bring
from lora_foundry.settings import Settings
from lora_foundry.tasks.pipelines import Pipeline

logger = logging.getLogger(__name__)
EVERY = 3.0  # seconds between two looks at a run's storage
PATIENCE = 10.0  # seconds that the first page of a run waits for its files; it shows what is there by then


class Mirror:
    """One fetch a run at a time."""

    def __init__(self) -> None:
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._last: dict[str, float] = {}

    async def look(self, settings: Settings, pipeline: Pipeline) -> None:
        """Brings a run's folder into step; returns at once, but at the first look. Never raises."""
        if not settings.storage:
            return
        name, first = pipeline.id, pipeline.id not in self._last
        task = self._tasks.get(name)
        if task is None and (first or time.monotonic() - self._last[name] > EVERY):
            task = self._tasks[name] = asyncio.create_task(self._bring(settings, pipeline))
        if task is not None and first:
            await asyncio.wait({task}, timeout=PATIENCE)

    async def _bring(self, settings: Settings, pipeline: Pipeline) -> None:
        try:
            await asyncio.to_thread(bring, settings, pipeline.character, pipeline.version)
        except (FoundryError, OSError) as error:
            logger.warning("The files of %s could not be fetched: %s", pipeline.character, error)
        finally:
            self._last[pipeline.id] = time.monotonic()
            self._tasks.pop(pipeline.id, None)
