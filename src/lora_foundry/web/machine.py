"""What is asked of the machine itself. Each answer is kept a moment, so that many open pages ask once; nothing heavy
is loaded into the server: torch is looked at by a process of its own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast
from urllib.parse import urlsplit

from pydantic import BaseModel

from lora_foundry.errors import BackendError
from lora_foundry.files.storage import disk_space
from lora_foundry.settings import Settings

Answer = TypeVar("Answer")
_MIB = 1024 * 1024
_GPU_SECONDS, _COMFY_SECONDS, _DOCTOR_SECONDS = 2.0, 5.0, 60.0
_PATIENCE, _DOCTOR_PATIENCE = 2.0, 90.0
_QUERY = "--query-gpu=name,memory.used,memory.total,utilization.gpu"


class Gpu(BaseModel):
    name: str
    used_bytes: int
    total_bytes: int
    busy: float | None


class Disk(BaseModel):
    name: str
    folder: str
    free_bytes: int
    total_bytes: int


class ComfyState(BaseModel):
    """Whether something answers at ComfyUI's address, which is empty where none was named; the doctor says more."""

    url: str
    reachable: bool
    detail: str


class Finding(BaseModel):
    subject: str
    ok: bool
    found: str
    fix: str


class _Kept(NamedTuple):
    until: float
    value: Any


class Machine:
    """Answers, each kept for as long as it is likely to be true."""

    def __init__(self) -> None:
        self._kept: dict[str, _Kept] = {}
        self._asking: dict[str, asyncio.Lock] = {}

    async def gpus(self) -> list[Gpu]:
        """What nvidia-smi says; none where there is no such program."""
        return await self._ask("gpus", _GPU_SECONDS, _gpus)

    async def comfyui(self, settings: Settings) -> ComfyState:
        """Nobody is asked where no ComfyUI was named: whoever listens at its usual address is a stranger's."""
        url = settings.comfyui_address
        if not settings.names_comfyui:
            return ComfyState(url="", reachable=False, detail="none was named; the settings page says how")
        return await self._ask(f"comfyui {url}", _COMFY_SECONDS, lambda: _comfyui(url))

    async def doctor(self, settings: Settings, recipe: str) -> list[Finding]:
        """Raises BackendError where the doctor itself does not end well."""
        return await self._ask(f"doctor {recipe}", _DOCTOR_SECONDS, lambda: _doctor(settings, recipe))

    async def _ask(self, name: str, seconds: float, ask: Callable[[], Awaitable[Answer]]) -> Answer:
        async with self._asking.setdefault(name, asyncio.Lock()):
            kept = self._kept.get(name)
            if kept is None or kept.until < time.monotonic():
                kept = _Kept(0.0, await ask())
                self._kept[name] = kept._replace(until=time.monotonic() + seconds)
            return cast(Answer, kept.value)


def disks(datasets: Path, loras: Path) -> list[Disk]:
    """Where sets and LoRAs go; one entry where both are on the same disk."""
    found: dict[tuple[int, int], Disk] = {}
    for name, folder in (("datasets", datasets), ("LoRAs", loras)):
        space = disk_space(folder)
        disk = Disk(name=name, folder=str(folder), free_bytes=space.free, total_bytes=space.total)
        found.setdefault((space.total, space.used), disk)
    return list(found.values())


async def _gpus() -> list[Gpu]:
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    text = await _output((program, _QUERY, "--format=csv,noheader,nounits"), _PATIENCE)
    return [gpu for line in text.splitlines() if (gpu := _gpu(line)) is not None]


def _gpu(line: str) -> Gpu | None:
    parts = [part.strip() for part in line.split(",")]
    try:
        name, used, total, busy = parts
        share = float(busy) / 100 if busy.replace(".", "").isdigit() else None
        return Gpu(name=name, used_bytes=int(used) * _MIB, total_bytes=int(total) * _MIB, busy=share)
    except ValueError:
        return None


async def _comfyui(url: str) -> ComfyState:
    parts = urlsplit(url if "://" in url else f"http://{url}")
    url = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()  # no password on a page
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        async with asyncio.timeout(_PATIENCE):
            _, writer = await asyncio.open_connection(parts.hostname or "127.0.0.1", port)
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
    except OSError as error:
        return ComfyState(
            url=url, reachable=False, detail=f"{url} does not answer ({error.strerror or 'too slow'})"
        )
    return ComfyState(url=url, reachable=True, detail=url)


async def _doctor(settings: Settings, recipe: str) -> list[Finding]:
    command = (sys.executable, "-m", "lora_foundry", "doctor", "--recipe", recipe, "--json")
    text = await _output((*command, "--home", str(settings.home)), _DOCTOR_PATIENCE)
    try:
        return [Finding.model_validate(each) for each in json.loads(text)]
    except ValueError as error:
        raise BackendError("The doctor did not come to an end; run `lora-foundry doctor`.") from error


async def _output(command: tuple[str, ...], patience: float) -> str:
    """What a program prints, empty where it fails or takes too long."""
    try:
        process = await asyncio.create_subprocess_exec(
            *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
        )
    except OSError:
        return ""
    try:
        async with asyncio.timeout(patience):
            out, _ = await process.communicate()
    except TimeoutError:
        return ""
    finally:  # too slow, or the server is being stopped: nothing of it stays behind
        if process.returncode is None:
            process.kill()
            await process.wait()
    return out.decode("utf-8", "replace")
