"""The bin's own work with files: all or nothing, also across disks, and never outside itself."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from lora_foundry.errors import StorageError
from lora_foundry.files import bin as bin_folder
from lora_foundry.files.paths import BinPaths
from lora_foundry.files.storage import write_model


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    folder = tmp_path / "datasets" / "Elara"
    (folder / "images").mkdir(parents=True)
    (folder / "images" / "1.png").write_bytes(b"picture")
    (folder / "link").symlink_to(tmp_path)
    note = tmp_path / "datasets" / "note.txt"
    note.write_text("note")
    return [folder, note]


@pytest.fixture
def two_disks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Renaming between folders fails as between disks."""
    rename = Path.rename

    def renamed(self: Path, target: Path) -> Path:
        if self.parent != Path(target).parent:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", renamed)


def test_what_fails_half_way_is_all_back_where_it_was(
    tmp_path: Path, files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = Path.rename

    def renamed(self: Path, target: Path) -> Path:
        if self == files[1]:
            raise OSError(errno.EACCES, "Permission denied")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", renamed)
    with pytest.raises(StorageError):
        bin_folder.throw_away(tmp_path, "run", "Elara", files, ["a"])
    assert (files[0] / "images" / "1.png").read_bytes() == b"picture"
    assert bin_folder.entries(tmp_path) == []


@pytest.mark.usefixtures("two_disks")
def test_from_disk_to_disk_and_back(tmp_path: Path, files: list[Path]) -> None:
    entry = bin_folder.throw_away(tmp_path, "run", "Elara", files)
    assert not files[0].exists()
    assert not files[1].exists()
    bin_folder.put_back(tmp_path, entry)
    assert (files[0] / "images" / "1.png").read_bytes() == b"picture"
    assert (files[0] / "link").is_symlink()
    assert files[1].read_text() == "note"
    assert bin_folder.entries(tmp_path) == []


@pytest.mark.usefixtures("two_disks")
def test_a_copy_that_was_broken_off_is_not_taken_for_the_whole(
    tmp_path: Path, files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(source: Path, target: Path) -> None:
        target.mkdir()
        raise KeyboardInterrupt

    monkeypatch.setattr(bin_folder, "_copy", killed)
    with pytest.raises(KeyboardInterrupt):
        bin_folder.throw_away(tmp_path, "run", "Elara", files)
    (entry,) = bin_folder.entries(tmp_path)
    monkeypatch.undo()
    bin_folder.put_back(tmp_path, entry)
    assert (files[0] / "images" / "1.png").read_bytes() == b"picture"


def test_emptying_follows_no_link_and_no_note_that_names_another_folder(
    tmp_path: Path, files: list[Path]
) -> None:
    precious = tmp_path / "precious.txt"
    precious.write_text("mine")
    entry = bin_folder.throw_away(tmp_path, "run", "Elara", files)
    forged = BinPaths(tmp_path, "forged")
    write_model(forged.entry, entry.model_copy(update={"id": "../datasets"}))
    assert [each.id for each in bin_folder.entries(tmp_path)] == [entry.id]
    bin_folder.remove(tmp_path, entry)
    assert precious.read_text() == "mine"
    assert (tmp_path / "datasets").is_dir()
