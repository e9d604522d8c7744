"""Takes the GPU over from a ComfyUI on the same machine before training: waits for its queue, asks for its
memory, and looks whether the memory came, since the server's answer alone says nothing about that. Where it did not
come and the user has named the commands, ComfyUI is stopped for the time of the training and started again."""

from __future__ import annotations

import asyncio
import logging
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from threading import Thread
from time import monotonic
from typing import NamedTuple, Self

import httpx

from lora_foundry.backends.comfyui.address import Address, address_of
from lora_foundry.backends.comfyui.client import ComfyUIClient
from lora_foundry.context import Context
from lora_foundry.domain.sections import TrainSection
from lora_foundry.errors import BackendError, FoundryError
from lora_foundry.families._shared.base import Base
from lora_foundry.families._shared.memory import MIB, driver_free, needed_memory
from lora_foundry.processes import own_group
from lora_foundry.settings import Settings

logger = logging.getLogger(__name__)
DriverFree = Callable[[], int | None]
_LOOK_EVERY = 0.5


class Waits(NamedTuple):
    """Seconds: until the queue is idle, until the memory is free, and for a command or a server that starts."""

    queue: float = 600.0
    memory: float = 30.0
    command: float = 180.0


class Handover(NamedTuple):
    """Free bytes before and after, as the server counts them (None: no server answers), and after, as the driver does
    (None: there is none to ask)."""

    before: int | None
    after: int | None
    driver: int | None


class NotEnoughMemoryError(BackendError):
    """The memory did not come, by the server's count or by the driver's."""


class ComfyUIGpu:
    """The Gpu port where a ComfyUI computes on the same GPU."""

    @classmethod
    def make(cls, context: Context) -> Self:
        """See registry."""
        return cls(context.base, context.settings)

    def __init__(
        self,
        base: Base,
        settings: Settings,
        free: Callable[[str], int | None] = driver_free,
        waits: Waits | None = None,
    ) -> None:
        self._base, self._settings, self._waits = base, settings, waits or Waits()
        self._free: DriverFree = lambda: free(settings.device)

    @contextmanager
    def room(self, settings: TrainSection) -> Iterator[None]:
        """See ports.Gpu."""
        url, stop, start = (
            address_of(self._settings.comfyui_address, self._settings.comfyui_token),
            self._settings.comfyui_stop,
            self._settings.comfyui_start,
        )
        needed = needed_memory(self._base, settings, self._settings.device)
        stopped = False
        try:
            figures = take_gpu(url, needed, self._free, self._waits)
        except NotEnoughMemoryError as error:
            if not stop or not start:
                raise
            logger.warning("%s It is stopped for the time of the training.", error)
            stopped = True
        try:
            if stopped:
                _run(stop, self._waits.command)
                figures = take_gpu(url, needed, self._free, self._waits)
            logger.info("the GPU is ours: %s", _told(figures.after, figures.driver))
            yield
        finally:
            if stopped:
                _start_again(start, url, self._waits.command)


def take_gpu(url: str | Address, needed: int, free: DriverFree, waits: Waits | None = None) -> Handover:
    """Makes a server give its GPU memory back, and looks whether `needed` bytes are free by every count there is.

    Raises NotEnoughMemoryError with both figures if there is not enough, BackendError if the queue does not become
    idle.
    """
    return asyncio.run(_take(url, needed, free, waits or Waits()))


async def _take(url: str | Address, needed: int, free: DriverFree, waits: Waits) -> Handover:
    async with ComfyUIClient(url) as client:
        before = await _server_free(client)
        if before is not None:
            try:
                await _until_idle(client, waits.queue)
                await client.free()
            except httpx.HTTPError as error:
                raise BackendError(
                    f"ComfyUI at {client.url} stopped answering during the hand-over: {error!r}."
                ) from error
        return await _until_free(client, before, needed, free, waits.memory)


async def _server_free(client: ComfyUIClient) -> int | None:
    """What the server counts as free; None where no ComfyUI answers, which holds no memory either: nobody, or some
    other web server, which is asked this one question and nothing else."""
    try:
        return (await client.stats()).free
    except httpx.HTTPError:
        return None
    except FoundryError as error:
        logger.info("%s is not a ComfyUI and is left alone: %s", client.url, error)
        return None


async def _until_idle(client: ComfyUIClient, seconds: float) -> None:
    started = monotonic()
    while not (queue := await client.queue()).idle:
        if monotonic() - started > seconds:
            raise BackendError(
                f"ComfyUI at {client.url} still has {len(queue.running) + len(queue.pending)} prompts after "
                f"{seconds:.0f} s; let them end, or clear its queue, and run this again."
            )
        await asyncio.sleep(_LOOK_EVERY)


async def _until_free(
    client: ComfyUIClient, before: int | None, needed: int, free: DriverFree, seconds: float
) -> Handover:
    started = monotonic()
    while True:
        after = None if before is None else await _server_free(client)
        driver = free()
        if all(count is None or count >= needed for count in (after, driver)):
            return Handover(before, after, driver)
        if monotonic() - started > seconds:
            raise NotEnoughMemoryError(
                f"Training needs about {needed // MIB} MiB of GPU memory and {_told(after, driver)} are free, though "
                "ComfyUI was asked to free its own; stop ComfyUI or other programs on this GPU, name the commands that "
                "may do it (LORA_FOUNDRY_COMFYUI_STOP and _START), or train with less (train.gradient_checkpointing)."
            )
        await asyncio.sleep(_LOOK_EVERY)


def _told(server: int | None, driver: int | None) -> str:
    counts = [] if server is None else [f"{server // MIB} MiB by ComfyUI's count"]
    counts += [] if driver is None else [f"{driver // MIB} MiB by the driver's"]
    return " and ".join(counts) or "no count says how many MiB"


def _run(command: Sequence[str], seconds: float) -> None:
    """Runs a command of the user's to its end. Raises BackendError where it fails."""
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=seconds, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BackendError(f"The command {list(command)} did not stop ComfyUI: {error}.") from error
    if done.returncode:
        raise BackendError(
            f"The command {list(command)} ended with {done.returncode}: {(done.stderr or done.stdout)[-300:].strip()}"
        )


def _start_again(command: Sequence[str], url: str | Address, seconds: float) -> None:
    """Starts ComfyUI and waits until it answers. It may be the command itself that keeps running. Never raises: the
    training that has ended is worth more."""
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            **own_group(),
        )
        Thread(target=process.wait, daemon=True).start()  # or its end would leave a zombie
        if not asyncio.run(_answers(url, seconds)):
            logger.error(
                "ComfyUI was stopped for the training and does not answer at %s again", address_of(url).url
            )
    except (OSError, FoundryError) as error:
        logger.error("ComfyUI was stopped for the training and could not be started again: %s", error)


async def _answers(url: str | Address, seconds: float) -> bool:
    started = monotonic()
    async with ComfyUIClient(url) as client:
        while await _server_free(client) is None:
            if monotonic() - started > seconds:
                return False
            await asyncio.sleep(_LOOK_EVERY)
    return True
