"""The bin: what a person deletes is moved to `<home>/bin/`, with a note of where it was, so that it can be put back; what lies
there for longer than KEPT days is gone for good. What was to be moved is written down before anything is, so a move that was
broken off can be undone as well."""

from __future__ import annotations

import errno
import secrets
import shutil
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from lora_foundry.errors import FoundryError, InputError
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
    """Moves files and folders to the bin; those that are not there are left out. Raises StorageError, with everything where
    it was."""
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
    try:
        for number, path in enumerate(entry.files):
            _move(path, place.part(number, path.name))
    except FoundryError:
        with suppress(
            FoundryError
        ):  # what cannot be moved back either stays in the bin, to be restored there
            put_back(home, entry)
        raise
    return entry


def entries(home: Path) -> list[BinEntry]:
    """What lies in the bin, the newest first."""
    root = BinPaths(home, "").bin
    try:
        names = sorted((path.name for path in root.iterdir()), reverse=True)
    except OSError:
        return []
    found = [(name, read_model(BinPaths(home, name).entry, BinEntry)) for name in names]
    # A note that names another folder than its own, as after a copy by hand, would have that one removed.
    return [each for name, each in found if each is not None and each.id == name]


def hidden_runs(home: Path) -> frozenset[str]:
    """The runs that lie in the bin."""
    return frozenset(each for entry in entries(home) for each in entry.pipelines)


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
    """Renames; where the bin is on another disk, copies aside, renames and deletes, so that half a copy is never taken for
    the whole."""
    with storage_errors(target):
        try:
            source.rename(target)
            return
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
        aside = target.with_name(f".{target.name}.part")
        try:
            _copy(source, aside)
            aside.rename(target)
        finally:
            _delete(aside)
        _delete(source)


def _copy(source: Path, target: Path) -> None:
    if source.is_dir() and not source.is_symlink():
        shutil.copytree(source, target, symlinks=True)
    else:
        shutil.copy2(source, target, follow_symlinks=False)


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
