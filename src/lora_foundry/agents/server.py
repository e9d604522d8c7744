"""Puts the server for agents together, and runs it: over standard input and output for a program on this machine that starts
it, or over HTTP behind the same guard and token as the REST API."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Callable
from typing import Any

from lora_foundry import __version__
from lora_foundry.agents import runs, sets
from lora_foundry.agents.sdk import MCPServer, TransportSecuritySettings
from lora_foundry.settings import Settings
from lora_foundry.web.app import make_site, opened
from lora_foundry.web.guard import LARGE_BODIES, Guard
from lora_foundry.web.serving import PATIENCE, keep_worker, listen, prove_database
from lora_foundry.web.site import Site

PATH = "/mcp"
INSTRUCTIONS = """\
lora-foundry makes LoRAs of characters: it draws or imports pictures, curates and captions them, trains, measures and
publishes. Begin with create_character; a worker does the work, so ask run_status now and then (a run takes minutes to
hours). Look at the set with list_dataset and show_picture, throw bad pictures out, then retry_run from "train". scores
shows what the LoRA changed; results links to the files; try_prompt draws with it."""


def make_server(site: Site) -> MCPServer[Any]:
    """The server with all tools. The site is opened by whoever runs it."""
    server = MCPServer[Any](
        "lora-foundry", version=__version__, instructions=INSTRUCTIONS, log_level="WARNING"
    )
    runs.add_tools(server, site)
    sets.add_tools(server, site)
    return server


def run_stdio(settings: Settings, *, with_worker: bool = False) -> None:
    """Serves whoever started this process until its standard input ends."""

    async def serve() -> None:
        await prove_database(settings)
        site = make_site(settings)
        async with opened(site), _worker(settings if with_worker else None):
            await make_server(site).run_stdio_async()

    asyncio.run(serve())


def run_http(
    settings: Settings,
    host: str,
    port: int,
    token: str | None,
    *,
    with_worker: bool = False,
    ready: Callable[[str], None] = lambda address: None,
) -> None:
    """Serves until SIGINT or SIGTERM. Raises InputError for an address that is not free."""
    import uvicorn

    asyncio.run(prove_database(settings))
    listening = listen(host, port)
    site = make_site(settings, token)
    config = uvicorn.Config(
        guarded(site), log_level="warning", access_log=False, timeout_graceful_shutdown=PATIENCE,
        server_header=False, proxy_headers=False,
    )  # fmt: skip
    shown = f"[{host}]" if ":" in host else host
    ready(f"http://{shown}:{listening.getsockname()[1]}{PATH}")

    async def serve() -> None:
        async with opened(site), _worker(settings if with_worker else None):
            await uvicorn.Server(config).serve(sockets=[listening])

    asyncio.run(serve())


def guarded(site: Site) -> Guard:
    """The HTTP application. Who may come in is decided by the guard of the REST API, so the SDK's own check is off."""
    app = make_server(site).streamable_http_app(
        streamable_http_path=PATH,
        max_request_body_size=LARGE_BODIES[PATH],
        transport_security=TransportSecuritySettings(enable_dns_rebinding_protection=False),
    )
    return Guard(app, site.sessions, site.limit)


@contextlib.asynccontextmanager
async def _worker(settings: Settings | None) -> AsyncIterator[None]:
    """A worker beside the server. It prints where errors go: standard output belongs to the protocol."""
    worker = None if settings is None else asyncio.create_task(keep_worker(settings, sys.stderr.fileno()))
    try:
        yield
    finally:
        if worker is not None:
            worker.cancel()
            await asyncio.gather(worker, return_exceptions=True)
