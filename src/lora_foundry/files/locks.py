"""One run at a time in a folder: two commands on one character would write over each other's pictures."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType

from filelock import FileLock, Timeout

from lora_foundry.domain.run import Run
from lora_foundry.errors import FoundryError, InputError
from lora_foundry.files.paths import RunPaths, published_lora, published_metadata
from lora_foundry.files.safetensors import read_header
from lora_foundry.files.storage import read_model, remove_leftovers, storage_errors, write_model
from lora_foundry.files.versions import make_room


class FolderLock:
    """An exclusive lock on a file, let go by the operating system when the process ends, however it ends."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = FileLock(path, timeout=0)

    def __enter__(self) -> FolderLock:
        with storage_errors(self._path):
            try:
                self._lock.acquire()
            except Timeout as error:
                raise InputError(
                    f"Another run is at work in {self._path.parent}; wait for it or stop it first."
                ) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.release()


@contextmanager
def waiting_lock(path: Path, patience: float = 60.0) -> Iterator[None]:
    """A lock on a file that others hold for moments only. Raises InputError after `patience` seconds."""
    until = time.monotonic() + patience
    while True:
        try:
            lock = FolderLock(path).__enter__()
            break
        except InputError:
            if time.monotonic() > until:
                raise
            time.sleep(0.05)
    try:
        yield
    finally:
        lock.__exit__(None, None, None)


def claim(paths: RunPaths, run: Run) -> None:
    """Records whose folder this is, and clears what a killed run left half written. Raises InputError for a folder that
    holds a character of another name, and where the LoRA would be installed under the name of another character's.

    Two names can be one folder where the file system ignores case, and "Elara" and "elara" are one file name everywhere.
    Call it with the folder's lock held, before any work is done.
    """
    earlier = read_model(paths.run_file, Run)
    if earlier is not None and earlier.character.name != run.character.name:
        raise InputError(
            f"{paths.root} holds the character {earlier.character.name!r} on this file system; choose another name."
        )
    installed = published_lora(run.lora_dir, run.output_name)
    owner = owner_of(installed)
    if owner and owner != run.character.name:
        raise InputError(
            f"{installed} belongs to the character {owner!r}; choose another name with --output-name, or move that file "
            "away."
        )
    remove_leftovers(paths.root, below=True)
    make_room(paths, run)
    if earlier != run:
        write_model(paths.run_file, run)


def owner_of(lora: Path) -> str:
    """Whose an installed LoRA is, by what stands in it or beside it; empty where that is not known or none is there."""
    with suppress(OSError, ValueError, KeyError, TypeError, FoundryError):
        said = read_header(lora).metadata.get("lora_foundry.character", "")
        if said:
            return str(json.loads(said)["name"])
        return str(json.loads(published_metadata(lora.parent, lora.stem).read_bytes())["character"])
    return ""
