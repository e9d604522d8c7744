"""The bin: what a person deletes is moved to `<home>/bin/`, with a note of where it was, so that it can be put back; what lies
there for longer than KEPT days is gone for good. What was to be moved is written down before anything is, so a move that was
broken off can be undone as well."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from lora_foundry.errors import InputError
from lora_foundry.files.paths import BinPaths
from lora_foundry.files.storage import make_folder, read_model, remove_tree, storage_errors, write_model

KEPT = 30  # days
Thing = Literal["run", "dataset", "LoRA"]


class BinEntry(BaseModel):
    """One thing that was deleted. `files`: where each part was, in the order of their numbers in the bin; `pipelines`: the
    runs that are hidden while it lies there."""

    model_config = ConfigDict(frozen=True)

    id: str
    thing: Thing
    name: str
    at: datetime
    files: tuple[Path, ...]
    pipelines: tuple[str, ...] = ()

    @property
    def until(self) -> datetime:
        """When it is removed for good."""
        return self.at + timedelta(days=KEPT)


def throw_away(
    home: Path, thing: Thing, name: str, files: Iterable[Path], pipelines: Iterable[str] = ()
) -> BinEntry:
    """Moves files and folders to the bin; those that are not there are left out. Raises StorageError."""
    now = datetime.now(UTC)
    entry = BinEntry(
        id=f"{now:%Y%m%d-%H%M%S}-{secrets.token_hex(4)}",
        thing=thing,
        name=name,
        at=now,
        files=tuple(path for path in files if path.exists() or path.is_symlink()),
        pipelines=tuple(pipelines),
    )
    place = BinPaths(home, entry.id)
    make_folder(place.root)
    write_model(place.entry, entry)
    for number, path in enumerate(entry.files):
        _move(path, place.part(number, path.name))
    return entry


def entries(home: Path) -> list[BinEntry]:
    """What lies in the bin, the newest first."""
    root = BinPaths(home, "").bin
    try:
        names = sorted((path.name for path in root.iterdir()), reverse=True)
    except OSError:
        return []
    found = [read_model(BinPaths(home, name).entry, BinEntry) for name in names]
    return [each for each in found if each is not None]


def find(home: Path, name: str) -> BinEntry:
    """The entry of that id. Raises InputError."""
    found = next((each for each in entries(home) if each.id == name), None)
    if found is None:
        raise InputError("This is no longer in the bin.")
    return found


def put_back(home: Path, entry: BinEntry) -> None:
    """Moves everything to where it was. Raises InputError, moving nothing, where something else stands there now;
    StorageError."""
    place = BinPaths(home, entry.id)
    parts = [(place.part(number, path.name), path) for number, path in enumerate(entry.files)]
    there = [(kept, target) for kept, target in parts if kept.exists() or kept.is_symlink()]
    for _, target in there:
        if target.exists() or target.is_symlink():
            raise InputError(f"{target} is there again; rename or delete it first, then restore this.")
    for kept, target in there:
        make_folder(target.parent)
        _move(kept, target)
    remove_tree(place.root)


def remove(home: Path, entry: BinEntry) -> None:
    """Removes an entry for good. Raises StorageError."""
    remove_tree(BinPaths(home, entry.id).root)


def outdated(home: Path, now: datetime) -> list[BinEntry]:
    """What has lain in the bin for longer than KEPT days."""
    return [each for each in entries(home) if each.until < now]


def _move(source: Path, target: Path) -> None:
    """Renames, or copies and deletes where the bin is on another disk."""
    with storage_errors(target):
        shutil.move(source, target)
