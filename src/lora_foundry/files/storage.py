"""Safe writing, in one place: every file is written aside and renamed, so a kill never leaves half a file,
and a full disk or a forbidden folder becomes one clear sentence instead of a traceback."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple, TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError

from lora_foundry.errors import StageError, StorageError

Model = TypeVar("Model", bound=BaseModel)
SPARE = 1 << 30  # bytes that are left for everything else on a disk
_FULL = {errno.ENOSPC, errno.EDQUOT}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG}


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Translates the operating system's errors about `path` into StorageError."""
    try:
        yield
    except OSError as error:
        raise storage_error(path, error) from error


def storage_error(path: Path, error: OSError) -> StorageError:
    """What the operating system's error about `path` means, and what to do."""
    if error.errno in _FULL:
        return StorageError(
            f"The disk that holds {path} is full; free some space and run the same command again."
        )
    if error.errno in _FORBIDDEN:
        return StorageError(
            f"{path} cannot be written ({error.strerror}); choose another folder or change its rights."
        )
    if error.errno == errno.ENOENT:
        return StorageError(f"{path} is not there any more; put it back, or run the same command again.")
    return StorageError(
        f"{path} could not be read or written ({error.strerror or error}); check the disk and try again."
    )


def make_folder(path: Path) -> Path:
    """Creates `path` with its parents and returns it. Raises StorageError."""
    with storage_errors(path):
        path.mkdir(parents=True, exist_ok=True)
    return path


def write_aside(path: Path, write: Callable[[Path], object]) -> Path:
    """Calls `write` with a temporary path in the same folder, flushes it to the disk and renames it to `path`.

    The temporary name keeps the suffix, since image and tensor writers choose the format by it.
    Raises StorageError, leaving nothing behind.
    """
    make_folder(path.parent)
    aside = path.with_name(f".{path.stem[:80]}.{os.getpid()}.part{path.suffix}")
    try:
        with storage_errors(path):
            write(aside)
            descriptor = os.open(aside, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            aside.replace(path)
    except BaseException:
        with suppress(OSError):  # where nothing can be deleted either, the first error is the one to tell
            aside.unlink(missing_ok=True)
        raise
    return path


def write_bytes(path: Path, data: bytes) -> Path:
    """Writes `data` to `path` atomically."""
    return write_aside(path, lambda aside: aside.write_bytes(data))


def write_text(path: Path, text: str) -> Path:
    """Writes UTF-8 `text` with newline line ends to `path` atomically."""
    return write_bytes(path, text.encode("utf-8"))


def write_model(path: Path, model: BaseModel) -> Path:
    """Writes a pydantic model as indented JSON, atomically."""
    return write_text(path, model.model_dump_json(indent=2) + "\n")


def write_json(path: Path, value: object) -> Path:
    """Writes any JSON-like value (models inside included), indented, atomically."""
    data = TypeAdapter(object).dump_python(value, mode="json")
    return write_text(path, json.dumps(data, indent=2, ensure_ascii=False) + "\n")


def read_model(path: Path, kind: type[Model]) -> Model | None:
    """Reads a model written by `write_model`; None where the file does not exist or holds something else.

    A result of an older version that no longer fits counts as absent: the stage that made it runs again.
    """
    try:
        return kind.model_validate_json(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValidationError):
        return None


def require_model(path: Path, kind: type[Model], made_by: str) -> Model:
    """Reads the result of an earlier stage, which must exist. Raises StageError."""
    model = read_model(path, kind)
    if model is None:
        raise StageError(f"{path} is missing or damaged; run the '{made_by}' stage again.")
    return model


class DiskSpace(NamedTuple):
    """Bytes of a disk."""

    total: int
    used: int
    free: int


def disk_space(folder: Path) -> DiskSpace:
    """Of the disk on which a folder lies, or will lie."""
    return DiskSpace(*shutil.disk_usage(next(each for each in (folder, *folder.parents) if each.exists())))


def check_room(folder: Path, needed: int) -> None:
    """Raises StorageError where the disk of `folder` has not so many bytes, and some to spare."""
    free = disk_space(folder).free
    needed += SPARE
    if free < needed:
        raise StorageError(
            f"{in_gb(needed)} are needed on the disk that holds {folder}, and {in_gb(free)} are free; free some space, and "
            "try again."
        )


def in_gb(count: int) -> str:
    return f"{count / 1e9:.1f} GB"


def remove_tree(path: Path) -> None:
    """Deletes a folder and what is in it; absent is fine."""
    with storage_errors(path):
        shutil.rmtree(path, ignore_errors=False) if path.exists() else None


def remove_file(path: Path) -> None:
    """Deletes a file; absent is fine. Raises StorageError."""
    with storage_errors(path):
        path.unlink(missing_ok=True)


def move_file(source: Path, target: Path) -> Path:
    """Renames within one file system, making the target's folder; atomic. Raises StorageError."""
    make_folder(target.parent)
    with storage_errors(target):
        return source.replace(target)


def remove_leftovers(folder: Path, below: bool = False) -> None:
    """Deletes what `write_aside` left in `folder` when the process was killed. below: in the folders in it, too."""
    with storage_errors(folder):
        for leftover in folder.rglob(".*.part*") if below else folder.glob(".*.part*"):
            leftover.unlink(missing_ok=True)
