"""What an operator's Prometheus wants to know: the queue, the workers, the disk, and this server's own work."""

from __future__ import annotations

import asyncio
from time import perf_counter
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lora_foundry import __version__
from lora_foundry.files.storage import disk_space
from lora_foundry.tasks.recovery import workers as live_workers

if TYPE_CHECKING:
    from lora_foundry.web.site import Site

CONTENT_TYPE = CONTENT_TYPE_LATEST
_BUCKETS = (0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)


class Traffic:
    """Counts requests by route, never by address: the number of series stays bounded."""

    def __init__(self, registry: CollectorRegistry) -> None:
        labels = ("method", "route", "status")
        self.requests = Counter("lora_foundry_http_requests", "Requests.", labels, registry=registry)
        self.seconds = Histogram(
            "lora_foundry_http_request_seconds", "Time to the answer's first byte.", buckets=_BUCKETS,
            registry=registry,
        )  # fmt: skip


class TrafficMiddleware:
    """Counts every answer."""

    def __init__(self, app: ASGIApp, traffic: Traffic) -> None:
        self._app, self._traffic = app, traffic

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = perf_counter()

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                route = getattr(scope.get("route"), "path", "none")
                self._traffic.requests.labels(scope["method"], route, str(message["status"])).inc()
                self._traffic.seconds.observe(perf_counter() - started)
            await send(message)

        await self._app(scope, receive, sending)


async def exposition(site: Site) -> bytes:
    """The server's counters and the state of the table, as text."""
    counts = await site.store.counts()
    workers = await live_workers(site.store)
    state = CollectorRegistry()
    version = Gauge("lora_foundry_info", "This program.", ("version",), registry=state)
    version.labels(__version__).set(1)
    by_status = Gauge("lora_foundry_tasks", "Rows of the task table.", ("status",), registry=state)
    for status, number in counts.items():
        by_status.labels(status).set(number)
    Gauge("lora_foundry_workers", "Workers whose beat is fresh.", registry=state).set(len(workers))
    streams = Gauge("lora_foundry_event_streams", "Open event streams.", registry=state)
    streams.set(site.hub.open_streams)
    free = Gauge(
        "lora_foundry_disk_free_bytes", "Free space where the folder lies.", ("folder",), registry=state
    )
    for name, folder in (("datasets", site.settings.datasets_dir), ("loras", site.settings.loras_dir)):
        free.labels(name).set((await asyncio.to_thread(disk_space, folder)).free)
    return generate_latest(state) + generate_latest(site.registry)
