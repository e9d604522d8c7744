"""Lends LoRA files to a server: copied into its LoRA folder under a name made of their content, since a
server keeps the old weights in memory when a file is replaced under the same name, and taken away again
afterwards."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

from lora_foundry.backends.comfyui.client import ComfyUIClient
from lora_foundry.backends.comfyui.keys import check_keys
from lora_foundry.backends.comfyui.leftovers import LENT, LENT_PREFIX
from lora_foundry.backends.comfyui.locate import Pairs, find_listed, seen_from_here
from lora_foundry.errors import BackendError, InputError
from lora_foundry.files.storage import write_aside

logger = logging.getLogger(__name__)
_LISTED_WITHIN = 10.0
_PROBED_FOR = 3.0
_EMPTY_FILE = b"\x02\0\0\0\0\0\0\0{}"  # a safetensors file of no tensors
_FORGOTTEN_AFTER = 24 * 3600.0


class PlacedLoras:
    """The LoRA files lent to a server."""

    def __init__(self, note: Callable[[str, str], None] = lambda kind, value: None) -> None:
        """note: is told of every file before it is lent."""
        self._own = uuid4().hex[:6]  # two runs may lend the same file, and each takes its own away
        self._note = note
        self._placed: dict[str, Path] = {}

    async def place(self, client: ComfyUIClient, path: Path, folder: Path, checkpoint: Path | None) -> str:
        """The server's name for a copy of the file. folder: the server's LoRA folder, and checkpoint: the file it draws
        with, both as this machine sees them. Raises VerificationError for keys that it would leave out."""
        await asyncio.to_thread(check_keys, path, checkpoint)
        digest = hashlib.sha256(await asyncio.to_thread(path.read_bytes)).hexdigest()
        name = f"{LENT_PREFIX}{digest[:16]}_{self._own}.safetensors"
        if name not in self._placed:
            self._remove_forgotten(folder)
            place = folder / name
            self._note(LENT, str(place))
            self._placed[name] = place
            await asyncio.to_thread(write_aside, place, lambda aside: shutil.copyfile(path, aside))
        return await listed_name(client, name, folder)

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
            for path in folder.glob(f"{LENT_PREFIX}*.safetensors"):
                if time.time() - path.stat().st_mtime > _FORGOTTEN_AFTER:
                    path.unlink(missing_ok=True)


async def lora_folder(client: ComfyUIClient, wanted: Path | None, pairs: Pairs) -> Path:
    """The server's LoRA folder as this machine sees it: `wanted`, if the server really looks there, or else the first of
    the server's own that is here. Raises InputError with what to set."""
    own = [seen_from_here(str(folder), pairs) for folder in await client.folders("loras")]
    looks_in = f"it looks in {', '.join(map(str, own))}" if own else "it does not say where it looks"
    here = [folder for folder in own if folder.is_dir()]
    if wanted is None:
        if here:
            return here[0]
        raise InputError(
            f"ComfyUI's LoRA folder is not known ({looks_in}); set LORA_FOUNDRY_LORAS to it as this machine sees it, or "
            "LORA_FOUNDRY_COMFYUI to ComfyUI's folder."
        )
    if any(folder.samefile(wanted) for folder in here if wanted.is_dir()) or await _is_listed(client, wanted):
        return wanted
    advice = (
        f"set LORA_FOUNDRY_LORAS={here[0]}"
        if here
        else "set LORA_FOUNDRY_LORAS to that folder as this machine sees it, or LORA_FOUNDRY_COMFYUI_PATHS to what its "
        "folders are here"
    )
    raise InputError(f"ComfyUI at {client.url} does not look in {wanted} for LoRAs ({looks_in}); {advice}.")


async def _is_listed(client: ComfyUIClient, folder: Path) -> bool:
    """Whether the server lists what lies in a folder, shown by an empty file that is there for a moment."""
    if not folder.is_dir():
        return False
    place = folder / f"{LENT_PREFIX}{uuid4().hex[:16]}.safetensors"
    try:
        place.write_bytes(_EMPTY_FILE)
        started = time.monotonic()
        while find_listed(place.name, await client.models("loras")) is None:
            if time.monotonic() - started > _PROBED_FOR:
                return False
            await asyncio.sleep(0.2)
    except OSError:
        return False
    finally:
        with suppress(OSError):
            place.unlink(missing_ok=True)
    return True


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
