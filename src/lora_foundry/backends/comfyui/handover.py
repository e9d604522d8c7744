"""Takes the GPU over from a ComfyUI on the same machine before training: waits for its queue, asks for its
memory, and looks whether the memory came, since the server's answer alone says nothing about that."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from time import monotonic
from typing import NamedTuple

import httpx

from lora_foundry.backends.comfyui.client import ComfyUIClient
from lora_foundry.errors import BackendError

logger = logging.getLogger(__name__)
_LOOK_EVERY = 0.5


class Handover(NamedTuple):
    """Free bytes before and after, as the server counts them, and after, as the driver does (None: not
    asked)."""

    before: int
    after: int
    driver: int | None


def take_gpu(
    url: str,
    needed: int,
    driver_free: Callable[[], int] | None = None,
    queue_seconds: float = 600.0,
    free_seconds: float = 30.0,
) -> Handover | None:
    """Makes a server on this machine give its GPU memory back; None where no server answers, which is as
    good.

    needed: bytes that training will use. driver_free: asks the driver, which also sees other programs.
    Raises BackendError with both figures if there is not enough, or if the queue does not become idle.
    """
    return asyncio.run(_take(url, needed, driver_free, queue_seconds, free_seconds))


async def _take(
    url: str, needed: int, driver_free: Callable[[], int] | None, queue_seconds: float, free_seconds: float
) -> Handover | None:
    async with ComfyUIClient(url) as client:
        try:
            before = (await client.stats()).free
        except httpx.HTTPError:
            return None
        try:
            await _until_idle(client, queue_seconds)
            await client.free()
            return await _until_free(client, before, needed, driver_free, free_seconds)
        except httpx.HTTPError as error:
            raise BackendError(
                f"ComfyUI at {url} stopped answering during the hand-over: {error!r}."
            ) from error


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
    client: ComfyUIClient, before: int, needed: int, driver_free: Callable[[], int] | None, seconds: float
) -> Handover:
    started = monotonic()
    while True:
        after = (await client.stats()).free
        driver = driver_free() if driver_free is not None else None
        if min(after, after if driver is None else driver) >= needed:
            return Handover(before, after, driver)
        if monotonic() - started > seconds:
            seen = f"{after >> 20} MiB by ComfyUI's count"
            seen += "" if driver is None else f" and {driver >> 20} MiB by the driver's"
            raise BackendError(
                f"Training needs {needed >> 20} MiB of GPU memory and {seen} are free, though ComfyUI was asked to "
                "free its own; stop ComfyUI or other programs on this GPU and run this again."
            )
        await asyncio.sleep(_LOOK_EVERY)
