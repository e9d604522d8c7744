"""Server-sent events for any number of open pages at the price of one look at the table: what changed is read once,
written once as text, and handed to every stream.

Each event has an id of this server's start and a number. A page that reconnects with an id that is still remembered
gets what it missed; with any other (a restart, a long sleep) it is told `reset`, and asks for everything again. A
stream that reads too slowly gets the newest state of each pipeline, never a growing queue."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import secrets
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from pydantic import BaseModel
from sqlalchemy.exc import DBAPIError

from lora_foundry.errors import FoundryError, RetryableError
from lora_foundry.tasks import signals
from lora_foundry.tasks.pipelines import Pipeline, get_pipeline
from lora_foundry.tasks.signals import pulse
from lora_foundry.tasks.store import TaskStore

logger = logging.getLogger(__name__)
REMEMBERED = 1000
MOST_STREAMS = 200
MOST_WAITING = 200
LEAST_PAUSE = 0.5
LONGEST_PAUSE = 5.0
HEARTBEAT = 15.0
LINGER = 60.0
RETRY = b"retry: 1000\n\n"
_COMMENT = b": still here\n\n"


class Event(NamedTuple):
    """One event as it goes over the wire. `pipeline` is empty for what concerns every stream."""

    number: int
    pipeline: str
    data: bytes


@dataclass(eq=False)
class Stream:
    """An open page: what it wants, and what it has not got yet, the newest of each pipeline."""

    pipeline: str | None
    waiting: dict[str, Event] = field(default_factory=dict)
    wake: asyncio.Event = field(default_factory=asyncio.Event)

    def give(self, event: Event) -> None:
        if self.pipeline is None or event.pipeline in ("", self.pipeline):
            self.waiting.pop(event.pipeline, None)
            self.waiting[event.pipeline] = event
            self.wake.set()


class Hub:
    """Watches the table while at least one stream is open. `show` makes what is sent of a pipeline."""

    def __init__(self, store: TaskStore, show: Callable[[Pipeline], Awaitable[BaseModel]]) -> None:
        self._store, self._show = store, show
        self._start = secrets.token_hex(4)
        self._number = 0
        self._past: deque[Event] = deque(maxlen=REMEMBERED)
        self._streams: set[Stream] = set()
        self._watcher: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        self._starting = asyncio.Lock()
        self._left = 0.0
        self._closed = False

    @property
    def open_streams(self) -> int:
        return len(self._streams)

    async def stream(self, pipeline: str | None, last_id: str | None) -> AsyncIterator[bytes]:
        """What one page is sent until it goes away or `close` is called. Raises RetryableError for one too many."""
        if len(self._streams) >= MOST_STREAMS:
            raise RetryableError(f"{MOST_STREAMS} event streams are open already; close some pages.")
        stream = Stream(pipeline)
        await self._watch()
        return self._serve(stream, await self._greet(stream, last_id))

    async def _serve(self, stream: Stream, first: list[bytes]) -> AsyncIterator[bytes]:
        self._streams.add(stream)
        try:
            yield RETRY
            for data in first:
                yield data
            while not self._closed:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(stream.wake.wait(), HEARTBEAT)
                stream.wake.clear()
                waiting, stream.waiting = stream.waiting, {}
                if len(waiting) > MOST_WAITING:
                    yield self._encode("reset", b"{}", self._number)
                    continue
                for event in waiting.values():
                    yield event.data
                if not waiting:
                    yield _COMMENT
        finally:
            self._streams.discard(stream)
            self._left = time.monotonic()

    async def _greet(self, stream: Stream, last_id: str | None) -> list[bytes]:
        """What a stream misses: the events after its last, or the word that it must ask for everything."""
        start, _, number = (last_id or "").partition("-")
        if start == self._start and number.isdecimal() and len(number) < 12:
            seen = int(number)
            if seen <= self._number and (not self._past or seen >= self._past[0].number - 1):
                missed = [each for each in self._past if each.number > seen]
                return [each.data for each in missed if stream.pipeline in (None, each.pipeline)]
        kind = "reset" if last_id else "hello"
        greeting = [self._encode(kind, b"{}", self._number)]
        if stream.pipeline is not None:
            shown = await self._show(await get_pipeline(self._store, stream.pipeline))
            greeting.append(self._encode("pipeline", shown.model_dump_json().encode(), self._number))
        return greeting

    def close(self) -> None:
        """Ends all streams; pages connect again by themselves when the server is back."""
        self._closed = True
        self._wake.set()
        for stream in self._streams:
            stream.wake.set()

    async def finish(self) -> None:
        """Closes, and waits for the look at the table that is under way: the event loop may end right after."""
        self.close()
        if self._watcher is not None:
            await asyncio.gather(self._watcher, return_exceptions=True)

    def publish(self, kind: str, pipeline: str, data: bytes) -> None:
        """Sends an event to the streams that want it."""
        self._number += 1
        event = Event(self._number, pipeline, self._encode(kind, data, self._number))
        self._past.append(event)
        for stream in self._streams:
            stream.give(event)

    def _encode(self, kind: str, data: bytes, number: int) -> bytes:
        """JSON holds no line break, so one data line is enough."""
        return f"id: {self._start}-{number}\nevent: {kind}\ndata: ".encode() + data + b"\n\n"

    async def _watch(self) -> None:
        """Has the table watched. What is there now is read before this returns, so nothing later is missed."""
        async with self._starting:
            if self._watcher is None or self._watcher.done():
                self._left = time.monotonic()
                self._start, self._past = secrets.token_hex(4), deque(maxlen=REMEMBERED)
                self._watcher = asyncio.create_task(self._watch_table(await pulse(self._store)))

    async def _watch_table(self, known: dict[str, str]) -> None:
        """Publishes each pipeline whose rows have changed, at most every LEAST_PAUSE seconds, while pages are open
        and a while longer, since a page that is loaded again comes back at once."""
        signal = asyncio.create_task(signals.watch(self._store.url, self._wake.set))
        try:
            while not self._closed and (self._streams or time.monotonic() - self._left < LINGER):
                self._wake.clear()
                try:
                    known = await self._look(known)
                except (DBAPIError, OSError) as error:
                    logger.warning("The task database does not answer: %s", error)
                await asyncio.sleep(LEAST_PAUSE)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), LONGEST_PAUSE)
        finally:
            signal.cancel()
            await asyncio.gather(signal, return_exceptions=True)

    async def _look(self, known: dict[str, str]) -> dict[str, str]:
        """Compares the unfinished pipelines with those known and publishes what is different."""
        found = await pulse(self._store)
        changed = [name for name, mark in found.items() if known.get(name) != mark]
        for name in [*changed, *(known.keys() - found.keys())]:
            try:
                shown = await self._show(await get_pipeline(self._store, name))
            except FoundryError:  # its rows were deleted
                self.publish("gone", name, json.dumps({"id": name}).encode())
                continue
            self.publish("pipeline", name, shown.model_dump_json().encode())
        return found
