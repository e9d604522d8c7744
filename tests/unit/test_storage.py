"""Whatever goes wrong while a file is written, the old file stays as it was and nothing lies beside it."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from lora_foundry.errors import InputError, StorageError
from lora_foundry.files import storage
from lora_foundry.files.locks import FolderLock


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "kept.json"
    path.write_bytes(b"old")
    return path


def test_a_file_is_replaced_as_a_whole(file: Path) -> None:
    seen: list[bytes] = []

    def write(aside: Path) -> None:
        aside.write_bytes(b"new")
        seen.append(file.read_bytes())

    storage.write_aside(file, write)
    assert seen == [b"old"], "it was written in place"
    assert file.read_bytes() == b"new"
    assert list(file.parent.iterdir()) == [file]


@pytest.mark.parametrize(
    ("fault", "raised", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), StorageError, "is full; free some space"),
        (OSError(errno.EROFS, "Read-only file system"), StorageError, "cannot be written"),
        (OSError(errno.EIO, "Input/output error"), StorageError, "could not be read or written"),
        (KeyboardInterrupt("stop"), KeyboardInterrupt, "stop"),
        (ValueError("no such format"), ValueError, "no such format"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
@pytest.mark.parametrize("where", ["writer", "flush"])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    file: Path,
    monkeypatch: pytest.MonkeyPatch,
    where: str,
    fault: BaseException,
    raised: type[BaseException],
    words: str,
) -> None:
    def fail(*_: object) -> None:
        raise fault

    def write(aside: Path) -> None:
        aside.write_bytes(b"half")
        if where == "writer":
            raise fault

    if where == "flush":
        monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(raised, match=words):
        storage.write_aside(file, write)
    assert file.read_bytes() == b"old"
    assert list(file.parent.iterdir()) == [file]


def test_where_nothing_can_be_deleted_either_the_file_that_was_to_be_written_is_named(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, *_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(StorageError, match=r"kept\.json cannot be written \(Read-only file system\); choose"):
        storage.write_aside(file, refuse)


def test_leftovers_are_cleared_where_that_is_asked_for_and_nothing_else(tmp_path: Path) -> None:
    below = tmp_path / "deep" / "er"
    below.mkdir(parents=True)
    left = [tmp_path / ".a.12.part.png", below / ".b.34.part.json"]
    kept = [tmp_path / "a.png", tmp_path / "part.png", below / ".hidden"]
    for path in (*left, *kept):
        path.touch()
    storage.remove_leftovers(tmp_path)
    assert [path.exists() for path in left] == [False, True]
    storage.remove_leftovers(tmp_path, below=True)
    assert [path.exists() for path in left] == [False, False]
    assert all(path.exists() for path in kept)


def test_a_folder_has_one_run_at_a_time(tmp_path: Path) -> None:
    lock = tmp_path / ".lock"
    with FolderLock(lock), pytest.raises(InputError, match="Another run"), FolderLock(lock):
        pytest.fail("both hold it")
    with FolderLock(lock):
        pass
