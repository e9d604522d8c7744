"""Runs the server, and a worker beside it where asked, until it is stopped; then ends both without losing work."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from types import FrameType

import uvicorn
from pydantic import SecretStr

from lora_foundry.errors import InputError
from lora_foundry.processes import STOP_SIGNALS, ask_to_end, kill_group, own_group
from lora_foundry.settings import Settings
from lora_foundry.tasks.store import TaskStore
from lora_foundry.web.app import create_app
from lora_foundry.web.guard import is_loopback
from lora_foundry.web.proxied import check_proxies, check_root
from lora_foundry.web.sessions import check_token, new_token
from lora_foundry.web.site import Site

logger = logging.getLogger(__name__)
PATIENCE = 5  # seconds that open answers get at the end
WORKER_GRACE = 45.0  # a worker gives its own children 30 s
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0


def access(settings: Settings, host: str) -> tuple[str | None, bool]:
    """The token that this server asks for, and whether it was made just now. Raises InputError for a bad one."""
    if settings.token is not None:
        return check_token(settings.token.get_secret_value()), False
    return (None, False) if is_loopback(host) else (new_token(), True)


def run(
    settings: Settings,
    host: str,
    port: int,
    token: str | None,
    *,
    with_worker: bool = False,
    root: str = "",
    trusted: Sequence[str] = (),
    ready: Callable[[str], None] = lambda address: None,
) -> None:
    """Serves until SIGINT or SIGTERM. Raises InputError for an address that is not free, and what the task database raises
    where it cannot be used."""
    root, networks = check_root(root), check_proxies(trusted)
    asyncio.run(prove_database(settings))
    listening = listen(host, port)
    app = create_app(settings, token, root, networks)
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, timeout_graceful_shutdown=PATIENCE, server_header=False,
        proxy_headers=False,
    )  # fmt: skip
    server = _Server(config, app.state.site)
    shown = f"[{host}]" if ":" in host else host
    ready(f"http://{shown}:{listening.getsockname()[1]}{root}")
    asyncio.run(_both(server, listening, settings if with_worker else None))


async def prove_database(settings: Settings) -> None:
    """Makes or adopts the tables before anything listens, so that a database that cannot be used is one sentence."""
    store = TaskStore(settings.task_database)
    try:
        await store.upgrade()
    finally:
        await store.close()


class _Server(uvicorn.Server):
    """Ends the event streams at the first signal; they would never end by themselves."""

    def __init__(self, config: uvicorn.Config, site: Site) -> None:
        super().__init__(config)
        self._site = site

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """uvicorn's own raises the signal again at the end, which would end this process before its worker."""
        before = {number: signal.signal(number, self.handle_exit) for number in STOP_SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """A second Ctrl-C waits for no answer; uvicorn's own then leaves the app open, whose end is a traceback."""
        await super().shutdown(sockets)
        if self.force_exit:
            await self.lifespan.shutdown()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._site.hub.close()
        super().handle_exit(sig, frame)


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raises InputError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio turns Nagle's algorithm off only where a socket says that it is TCP; with it each answer takes 40 ms.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        if os.name == "posix":
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen(512)
    except OSError as error:
        listening.close()
        raise InputError(
            f"Port {port} of {host} is not free ({error.strerror or error}); choose another with --port."
        ) from error
    return listening


async def _both(server: uvicorn.Server, listening: socket.socket, settings: Settings | None) -> None:
    worker = asyncio.create_task(keep_worker(settings)) if settings is not None else None
    try:
        await server.serve(sockets=[listening])
    finally:
        if worker is not None:
            worker.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await worker


async def keep_worker(settings: Settings, output: int | None = None) -> None:
    """A worker in a process of its own, started again when it dies; cancelling ends it as SIGTERM does. output: the
    descriptor that it prints to, where this process's own is spoken for."""
    pause = FIRST_PAUSE
    while True:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "lora_foundry", "worker", "--home", str(settings.home)),
            env=_environment(settings),
            stdout=output,
            **own_group(),  # Ctrl-C is for this process, which then stops that one
        )
        try:
            code = await process.wait()
        except asyncio.CancelledError:
            await _stop(process)
            raise
        logger.warning("The worker ended with code %s; another starts in %g s.", code, pause)
        await asyncio.sleep(pause)
        pause = min(pause * 2, LONGEST_PAUSE)


async def _stop(process: asyncio.subprocess.Process) -> None:
    """Asks, waits, and kills. Rows of a killed worker are given back by the next one."""
    ask_to_end(process)
    try:
        await asyncio.wait_for(process.wait(), WORKER_GRACE)
    except TimeoutError:
        kill_group(process.pid)


def _environment(settings: Settings) -> dict[str, str]:
    """The settings as the worker reads them, also those that this process was given by its caller."""
    values = settings.model_dump(exclude={"home", "token"}, exclude_none=True)
    others = {name: text for name, text in os.environ.items() if not name.upper().startswith("LORA_FOUNDRY_")}
    return others | {f"LORA_FOUNDRY_{name.upper()}": _as_text(value) for name, value in values.items()}


def _as_text(value: object) -> str:
    """A setting as the environment holds it: lists as JSON, secrets in the clear."""
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    return json.dumps(value) if isinstance(value, tuple) else str(value)
