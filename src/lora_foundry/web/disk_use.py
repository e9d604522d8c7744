"""How much room things take on the disk, and what of it can be freed without losing work."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import BaseModel

from lora_foundry.errors import InputError
from lora_foundry.files.locks import FolderLock
from lora_foundry.files.paths import CACHE, CHECKPOINTS, ROUNDS, VERSIONS, BinPaths, RunPaths
from lora_foundry.files.storage import remove_tree
from lora_foundry.settings import Settings
from lora_foundry.web.problems import ConflictError


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files below a folder; a file with several names there counts once. What goes meanwhile
    counts as nothing."""
    if not path.is_dir():
        return _bytes(path)
    total, seen = 0, set[tuple[int, int]]()
    for folder, _, files in os.walk(path):
        for name in files:
            try:
                stat = os.lstat(os.path.join(folder, name))
            except OSError:
                continue
            if stat.st_nlink > 1:
                if (stat.st_dev, stat.st_ino) in seen:
                    continue
                seen.add((stat.st_dev, stat.st_ino))
            total += stat.st_size
    return total


def _bytes(path: Path) -> int:
    try:
        return path.lstat().st_size
    except OSError:
        return 0


FRESH_SECONDS = 3600.0  # for which nobody takes away what was sent
Freeable = Literal["checkpoints", "uploads", "logs"]


class Use(BaseModel):
    """What something takes. `freeable`: how `DELETE /disk/...` calls it, where it can go; `held`: why it cannot now."""

    name: str
    folder: str
    bytes: int
    freeable: Freeable | None = None
    held: str = ""


class Freed(BaseModel):
    bytes: int


def used(settings: Settings, nothing_runs: bool) -> list[Use]:
    """What this program has on the disk, the largest first."""
    home = settings.home.expanduser().absolute()
    kept = sum(size_of(path) for path in _checkpoints(settings))
    held = "" if nothing_runs else "A run is unfinished and may need them."
    sent = home / "uploads"
    fresh = (
        ""
        if _unused(sent) or not size_of(sent)
        else "Sent within the last hour; somebody may be about to start a run with them."
    )
    datasets, models = settings.datasets_dir, settings.model_folders[0]
    waste = BinPaths(home, "").bin
    parts = [
        _use("Training sets and results", datasets, size_of(datasets) - kept),
        _use("Checkpoints of trainings", datasets, kept, "checkpoints", held),
        _use("Installed LoRAs", settings.loras_dir, size_of(settings.loras_dir)),
        _use("Base models", models, size_of(models)),
        _use("Pictures that were sent and not used", sent, size_of(sent), "uploads", fresh),
        _use("Logs", home / "logs", size_of(home / "logs"), "logs", held),
        _use("Bin", waste, size_of(waste)),
    ]
    return sorted(parts, key=lambda each: each.bytes, reverse=True)


def _use(name: str, folder: Path, size: int, freeable: Freeable | None = None, held: str = "") -> Use:
    return Use(name=name, folder=str(folder), bytes=size, freeable=freeable, held=held)


def free(settings: Settings, what: Freeable, nothing_runs: bool) -> Freed:
    """Removes one of these; what a command of this machine works with at the moment stays. Raises ConflictError while a
    run may need it."""
    if what != "uploads" and not nothing_runs:
        raise ConflictError("A run is unfinished and may need them; wait for it or cancel it.")
    home = settings.home.expanduser().absolute()
    if what == "checkpoints":
        return Freed(bytes=sum(_free_checkpoints(path) for path in list(_checkpoints(settings))))
    return Freed(
        bytes=sum(_remove(path) for path in ([home / "logs"] if what == "logs" else _unused(home / what)))
    )


def _remove(path: Path) -> int:
    size = size_of(path)
    remove_tree(path)
    return size


def _free_checkpoints(path: Path) -> int:
    """Bytes that were freed: none where a run is at work, which no row of the table need tell."""
    made_in = next(folder for folder in path.parents if _is_run(folder))
    root = made_in.parent.parent if made_in.parent.name == VERSIONS else made_in
    try:
        with FolderLock(RunPaths(root, "").lock):
            return _remove(path)
    except InputError:
        return 0


def _unused(uploads: Path) -> list[Path]:
    """What was sent and not touched for a while."""
    if not uploads.is_dir():
        return []
    folders = [path for path in uploads.iterdir() if path.is_dir()]
    return [path for path in folders if time.time() - _changed(path) > FRESH_SECONDS]


def _changed(folder: Path) -> float:
    return max(
        path.stat().st_mtime for path in (folder, *(each for each in folder.rglob("*") if each.is_dir()))
    )


def _checkpoints(settings: Settings) -> Iterator[Path]:
    """What a training keeps to go on: its states and cached latents, of every version and round. A folder of the same name
    among somebody's pictures is none of these."""
    for folder in settings.datasets_dir.glob("*/**/training"):
        above = folder.parent
        if _is_run(above) or (above.parent.name == ROUNDS and _is_run(above.parent.parent)):
            yield from (path for name in (CHECKPOINTS, CACHE) if (path := folder / name).is_dir())


def _is_run(folder: Path) -> bool:
    return RunPaths(folder, "").run_file.is_file()
