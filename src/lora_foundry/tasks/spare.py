"""A process that did a stage and waits for the next one of its pipeline: it has all imported that the next one needs, which
takes longer than many a stage. It keeps some of the GPU's memory, so it does not wait for long, nor beside another run."""

from __future__ import annotations

import os
import time
from asyncio.subprocess import Process
from pathlib import Path

from lora_foundry.tasks.children import Child

LONGEST = 60.0  # seconds


class Spare:
    """At most one process that waits. pipeline: the only one that its worker serves, for which it waits without limit."""

    def __init__(self, pipeline: str | None) -> None:
        self._only, self._for = pipeline, pipeline
        self._process: Process | None = None
        self._since = 0.0

    def suits(self, lane: str, pipeline: str | None) -> bool:
        """Whether the process of such an attempt may be the next stage's, too."""
        return self._only is not None or (lane == "gpu" and pipeline is not None)

    async def keep(self, process: Process, pipeline: str | None) -> None:
        await self.drop()
        self._process, self._for, self._since = process, pipeline, time.monotonic()

    async def take(self, lane: str, pipeline: str | None) -> Process | None:
        """The process, if it waits for such an attempt; one that waits for another pipeline ends, since both would share
        the GPU."""
        if not self.suits(lane, pipeline):
            return None
        if self._for != pipeline:
            await self.drop()
        process, self._process = self._process, None
        return process

    async def drop(self, idle: float = 0.0) -> None:
        """Ends the process, if it has waited for that many seconds."""
        if self._process is not None and time.monotonic() - self._since >= idle:
            child, self._process = self._child(), None
            await child.end()

    async def drop_old(self) -> None:
        """Ends the process if its pipeline does not go on."""
        if self._only is None:
            await self.drop(LONGEST)

    def heartbeat(self) -> None:
        self._child().heartbeat()

    def _child(self) -> Child:
        return Child(Path(os.devnull), lambda event: None, process=self._process)
