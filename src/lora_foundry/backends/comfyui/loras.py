"""Lends LoRA files to a server: copied into its LoRA folder under a name made of their content, since a
server keeps the old weights in memory when a file is replaced under the same name, and taken away again
afterwards."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import shutil
import time
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

from lora_foundry.backends.comfyui.client import ComfyUIClient, find_listed
from lora_foundry.backends.comfyui.keys import check_keys
from lora_foundry.errors import BackendError, InputError
from lora_foundry.files.storage import write_aside

logger = logging.getLogger(__name__)
_PREFIX = "lora_foundry_tmp_"
_LISTED_WITHIN = 10.0
_FORGOTTEN_AFTER = 24 * 3600.0


class PlacedLoras:
    """The LoRA files lent to a server. `folder` is its LoRA folder and `checkpoint` the file it draws with, both as
    this machine sees them, None where it does not."""

    def __init__(self, folder: Path | None, checkpoint: Path | None = None) -> None:
        self._folder, self._checkpoint = folder, checkpoint
        self._own = uuid4().hex[:6]  # two runs may lend the same file, and each takes its own away
        self._placed: dict[str, Path] = {}

    async def place(self, client: ComfyUIClient, path: Path) -> str:
        """The server's name for a copy of the file. Raises VerificationError for keys that it would leave
        out."""
        if self._folder is None:
            raise InputError(
                "ComfyUI's LoRA folder is not known; set LORA_FOUNDRY_COMFYUI to ComfyUI's folder."
            )
        await asyncio.to_thread(check_keys, path, self._checkpoint)
        digest = hashlib.sha256(await asyncio.to_thread(path.read_bytes)).hexdigest()
        name = f"{_PREFIX}{digest[:16]}_{self._own}.safetensors"
        if name not in self._placed:
            self._remove_forgotten(self._folder)
            place = self._folder / name
            self._placed[name] = place
            await asyncio.to_thread(write_aside, place, lambda aside: shutil.copyfile(path, aside))
        return await listed_name(client, name, self._folder)

    def remove(self) -> None:
        """Takes every lent file away again."""
        for path in self._placed.values():
            with suppress(OSError):
                path.unlink(missing_ok=True)
        self._placed.clear()

    @staticmethod
    def _remove_forgotten(folder: Path) -> None:
        """What a run that was killed could not take away."""
        with suppress(OSError):
            for path in folder.glob(f"{_PREFIX}*.safetensors"):
                if time.time() - path.stat().st_mtime > _FORGOTTEN_AFTER:
                    path.unlink(missing_ok=True)


async def listed_name(client: ComfyUIClient, name: str, folder: Path) -> str:
    """The server's spelling of a LoRA that was just put into `folder`. Raises BackendError where it lists none."""
    started = time.monotonic()
    while True:
        listed = await client.models("loras")
        if (known := find_listed(name, listed)) is not None:
            return known
        if time.monotonic() - started > _LISTED_WITHIN:
            raise BackendError(
                f"ComfyUI at {client.url} does not list {name}, which was put into {folder}; "
                "set LORA_FOUNDRY_COMFYUI to the folder of the server that runs there."
            )
        await asyncio.sleep(0.2)
