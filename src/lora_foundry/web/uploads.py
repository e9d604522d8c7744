"""A person's own pictures on their way from a browser to a set: kept under an id until a run is started that names it,
then copied into its folder like those of the command line, and forgotten. What is in them is looked at by the same
reader that the stages use."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO, NamedTuple
from uuid import uuid4

from lora_foundry.errors import InputError
from lora_foundry.files.images import picture_size
from lora_foundry.files.importing import MOST_BYTES
from lora_foundry.files.storage import check_room, in_gb, make_folder, remove_tree, write_aside
from lora_foundry.files.training_set import pictures_in
from lora_foundry.settings import Settings
from lora_foundry.web.problems import NotFoundError
from lora_foundry.web.safe_files import is_plain_name
from lora_foundry.web.told_paths import UPLOADS

MOST_FILES = 5000
KEPT_SECONDS = 7 * 24 * 3600.0  # what nobody has started a run with after that is removed
_PIECE = 1 << 20
_ID = re.compile(r"[0-9a-f]{32}")


class Uploaded(NamedTuple):
    """What lies under an id: pictures, zip files that are opened when the run starts, and what cannot be used and why."""

    id: str
    pictures: int
    zips: int
    left_out: list[tuple[str, str]]


def add(settings: Settings, upload: str | None, files: Iterable[tuple[str, BinaryIO]]) -> Uploaded:
    """Keeps files under a new id, or beside those of `upload`. Names may hold folders, as a dropped folder has them.

    Raises NotFoundError for an unknown id, InputError for too many files or bytes, StorageError, also where there is no room
    for them.
    """
    _remove_old(_root(settings))
    folder = _root(settings) / uuid4().hex if upload is None else _folder(settings, upload)
    there = [path for path in folder.rglob("*") if path.is_file()]
    count, total = len(there), sum(path.stat().st_size for path in there)
    for name, content in files:  # one by one: a caller may open each when its turn comes
        size = _size(content)
        count, total = count + 1, total + size
        if count > MOST_FILES:
            raise InputError(
                f"More than {MOST_FILES} files were sent; put them into a zip file, or use --pictures."
            )
        if total > MOST_BYTES:
            raise InputError(
                f"More than {in_gb(MOST_BYTES)} were sent; leave some out, or give the folder to `create --pictures`."
            )
        check_room(folder, size)
        _keep(folder, name, content)
    make_folder(folder)
    return look(settings, folder.name)


def _size(content: BinaryIO) -> int:
    size = content.seek(0, os.SEEK_END)
    content.seek(0)
    return size


def look(settings: Settings, upload: str) -> Uploaded:
    """What lies under an id. Raises NotFoundError."""
    folder = _folder(settings, upload)
    found = pictures_in(folder)
    others = [each for each in found.others if not each.name.lower().endswith(".zip")]
    left_out = [(each.name, each.reason) for each in (*found.left_out, *others)]
    faults = [(each.name, fault) for each in found.pictures if (fault := _fault(each.path))]
    return Uploaded(upload, len(found.pictures) - len(faults), len(_zips(folder)), [*left_out, *faults])


def _fault(path: Path) -> str:
    """Why a file that is called a picture is none, by its first bytes; "" where it may be one."""
    try:
        picture_size(path)
    except InputError as error:
        return str(error).removeprefix(f"{path} ")
    return ""


def sources(settings: Settings, upload: str) -> list[Path]:
    """What lies under an id, as importing takes it. Raises NotFoundError, InputError for nothing."""
    folder = _folder(settings, upload)
    found = [*([folder] if pictures_in(folder).pictures else []), *_zips(folder)]
    if not found:
        raise InputError("No picture was sent; add some, or choose another way to begin.")
    return found


def _zips(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() == ".zip")


def forget(settings: Settings, upload: str) -> None:
    """Removes what lies under an id. Raises NotFoundError."""
    remove_tree(_folder(settings, upload))


def _root(settings: Settings) -> Path:
    return settings.home.expanduser().absolute() / UPLOADS


def _folder(settings: Settings, upload: str) -> Path:
    folder = _root(settings) / upload
    if not _ID.fullmatch(upload) or not folder.is_dir():
        raise NotFoundError("These pictures are no longer here; send them again.")
    return folder


def _keep(folder: Path, name: str, content: BinaryIO) -> None:
    parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")]
    if not parts or len(parts) > 8 or not all(is_plain_name(part) for part in parts):
        return  # hidden and system files, which a dropped folder brings along

    def copy(aside: Path) -> None:
        with aside.open("wb") as file:
            shutil.copyfileobj(content, file, _PIECE)

    write_aside(folder.joinpath(*parts), copy)


def _remove_old(root: Path) -> None:
    if root.is_dir():
        for folder in root.iterdir():
            if time.time() - folder.stat().st_mtime > KEPT_SECONDS:
                remove_tree(folder)
