"""Lends LoRA files to a server: copied into its LoRA folder under a name made of their content, since a
server keeps the old weights in memory when a file is replaced under the same name, and taken away again
afterwards."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import shutil
import struct
from contextlib import suppress
from pathlib import Path
from time import monotonic

from lora_foundry.backends.comfyui.client import ComfyUIClient
from lora_foundry.errors import BackendError, InputError, VerificationError
from lora_foundry.storage import write_aside

logger = logging.getLogger(__name__)
_LISTED_WITHIN = 10.0
_LENGTH = 8
_LARGEST_HEADER = 100_000_000
# The names that were seen to load whole; ComfyUI drops any other key and still reports success.
_LOADED_PREFIXES = ("lora_unet_", "lora_te_", "lora_te1_", "lora_te2_", "lora_te3_", "diffusion_model.")


class PlacedLoras:
    """The LoRA files lent to a server."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._placed: dict[str, Path] = {}

    async def place(self, client: ComfyUIClient, path: Path) -> str:
        """The server's name for a copy of the file. Raises VerificationError for keys that it would leave
        out."""
        if self._folder is None:
            raise InputError(
                "ComfyUI's LoRA folder is not known; set LORA_FOUNDRY_COMFYUI to ComfyUI's folder."
            )
        check_keys(path)
        digest = hashlib.sha256(await asyncio.to_thread(path.read_bytes)).hexdigest()
        name = f"lora_foundry_tmp_{digest[:16]}.safetensors"
        if name not in self._placed:
            place = self._folder / name
            self._placed[name] = place
            await asyncio.to_thread(write_aside, place, lambda aside: shutil.copyfile(path, aside))
        started = monotonic()
        while True:
            listed = await client.models("loras")
            for known in listed:
                if known.replace("\\", "/").rsplit("/", 1)[-1] == name:
                    return known
            if monotonic() - started > _LISTED_WITHIN:
                raise BackendError(
                    f"ComfyUI at {client.url} does not list a LoRA that was put into {self._folder}; "
                    "set LORA_FOUNDRY_COMFYUI to the folder of the server that runs there."
                )
            await asyncio.sleep(0.2)

    def remove(self) -> None:
        """Takes every lent file away again."""
        for path in self._placed.values():
            with suppress(OSError):
                path.unlink(missing_ok=True)
        self._placed.clear()


def check_keys(path: Path) -> None:
    """Raises VerificationError if the file has keys in a form that ComfyUI is known to drop without an
    error."""
    lost = [key for key in read_keys(path) if not key.startswith(_LOADED_PREFIXES)]
    if lost:
        raise VerificationError(
            f"ComfyUI would leave out {len(lost)} keys of {path.name}, such as {lost[0]}; "
            "export it in kohya's names (lora_unet_..., lora_te_...)."
        )


def read_keys(path: Path) -> list[str]:
    """The tensor names of a safetensors file, from its header alone. Raises VerificationError."""
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(_LENGTH))
            if length > _LARGEST_HEADER:
                raise ValueError("its header is too long")
            header = json.loads(file.read(length))
    except (OSError, ValueError, struct.error) as error:
        raise VerificationError(f"The LoRA {path} cannot be read: {error}.") from error
    return [key for key in header if key != "__metadata__"]
