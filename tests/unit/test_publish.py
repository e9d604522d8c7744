"""Publishing: only a proven file, never over somebody else's, and all of it or nothing."""

from __future__ import annotations

import errno
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from lora_foundry.backends.folder import FolderPublisher
from lora_foundry.domain.publication import LoraCard
from lora_foundry.errors import InputError, StorageError, VerificationError
from lora_foundry.files import storage
from lora_foundry.stages.publish.soundness import check_numbers


def write_lora(path: Path, up: float = 0.5, kind: type[np.floating] = np.float16) -> Path:
    tensors = {
        "lora_unet_x.lora_down.weight": np.ones((2, 3), kind),
        "lora_unet_x.lora_up.weight": np.full((3, 2), up, kind),
        "lora_unet_x.alpha": kind(2.0).reshape(()),
    }
    save_file({name: np.asarray(value) for name, value in tensors.items()}, path)
    return path


def write_raw(path: Path, header: object, data: bytes = b"") -> Path:
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    return write_lora(tmp_path / "lora.safetensors")


@pytest.fixture
def preview(tmp_path: Path) -> Path:
    path = tmp_path / "preview.png"
    Image.new("RGB", (8, 8)).save(path)
    return path


def card(character: str, trigger: str = "") -> LoraCard:
    return LoraCard(
        character=character,
        trigger=trigger or character.lower(),
        description="1girl, red hair",
        tags=("red hair",),
        strength=0.8,
        sha256="ab" * 32,
        base_model="base [0]",
        base_version="sd_v1",
        base_names=("SD 1.5", "SD1"),
        steps=5,
        scores={},
        recipe={},
        made_by="lora-foundry",
    )


def content(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_a_sound_lora_passes(tmp_path: Path, kind: type[np.floating]) -> None:
    check_numbers(write_lora(tmp_path / "lora.safetensors", kind=kind))


@pytest.mark.parametrize(
    ("bits", "words"), [(0x3F00, ""), (0x7FC0, "NaN"), (0x7F80, "NaN or infinity"), (0, "changes")]
)
def test_bfloat16_is_read(tmp_path: Path, bits: int, words: str) -> None:
    header = {"x.lora_up.weight": {"dtype": "BF16", "shape": [1], "data_offsets": [0, 2]}}
    path = write_raw(tmp_path / "b.safetensors", header, struct.pack("<H", bits))
    if not words:
        check_numbers(path)
        return
    with pytest.raises(VerificationError, match=words):
        check_numbers(path)


@pytest.mark.parametrize(
    ("up", "words"), [(float("nan"), "NaN"), (float("inf"), "infinity"), (0.0, "changes nothing")]
)
def test_a_bad_lora_is_refused(tmp_path: Path, up: float, words: str) -> None:
    with pytest.raises(VerificationError, match=words):
        check_numbers(write_lora(tmp_path / "bad.safetensors", up))


@pytest.mark.parametrize("keep", [0, 5, 60, 200, -1])
def test_a_cut_file_is_refused(lora: Path, keep: int) -> None:
    lora.write_bytes(lora.read_bytes()[:keep])
    with pytest.raises(VerificationError, match="not a whole safetensors file"):
        check_numbers(lora)


@pytest.mark.parametrize(
    "header", [[], {"x": 1}, {"x": {"dtype": "F16"}}, {"x": {"dtype": "F16", "data_offsets": [0]}}]
)
def test_a_nonsense_header_is_refused(tmp_path: Path, header: object) -> None:
    with pytest.raises(VerificationError, match="not a whole safetensors file"):
        check_numbers(write_raw(tmp_path / "x.safetensors", header))


def test_integers_are_no_lora(tmp_path: Path) -> None:
    header = {"x.lora_up.weight": {"dtype": "I8", "shape": [1], "data_offsets": [0, 1]}}
    with pytest.raises(VerificationError, match="I8"):
        check_numbers(write_raw(tmp_path / "x.safetensors", header, b"1"))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def of(name: str) -> list[str]:
    return [f"{name}.json", f"{name}.metadata.json", f"{name}.preview.png", f"{name}.safetensors"]


def test_a_renewed_lora_keeps_the_older_ones_as_versions(tmp_path: Path, lora: Path, preview: Path) -> None:
    folder = tmp_path / "with space é" / "loras"
    older = []
    for up in (0.5, 0.25, 0.125):
        write_lora(lora, up)
        older.append(lora.read_bytes())
        for _ in range(2):  # the same one again makes no version
            files = FolderPublisher().publish(lora, preview, card("Elara"), folder, "elara_mini")
        assert files.lora.read_bytes() == lora.read_bytes()
    assert names(folder) == sorted([*of("elara_mini"), *of("elara_mini.v1"), *of("elara_mini.v2")])
    assert [(folder / f"elara_mini.v{number}.safetensors").read_bytes() for number in (1, 2)] == older[:2]


def test_a_kill_between_the_version_and_the_new_lora_makes_no_second_version(
    tmp_path: Path, lora: Path, preview: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    FolderPublisher().publish(lora, preview, card("Elara"), tmp_path / "loras", "elara")
    write_lora(lora, 0.25)
    with monkeypatch.context() as patch:
        patch.setattr(storage, "write_json", lambda path, value: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            FolderPublisher().publish(lora, preview, card("Elara"), tmp_path / "loras", "elara")
    files = FolderPublisher().publish(lora, preview, card("Elara"), tmp_path / "loras", "elara")
    assert files.kept == tmp_path / "loras" / "elara.v1.safetensors"
    assert names(tmp_path / "loras") == sorted([*of("elara"), *of("elara.v1")])


def test_the_cards_have_the_forms_that_other_programs_read(tmp_path: Path, lora: Path, preview: Path) -> None:
    files = FolderPublisher().publish(lora, preview, card("Elara"), tmp_path, "elara")
    manager = content(files.metadata)
    # ComfyUI-Lora-Manager makes its record of these by keyword; a file that lacks one hides the LoRA.
    required = {
        "file_name",
        "model_name",
        "file_path",
        "size",
        "modified",
        "sha256",
        "base_model",
        "preview_url",
    }
    assert required <= set(manager)
    assert manager["file_name"] == "elara"
    assert manager["size"] == files.lora.stat().st_size
    assert manager["base_model"] == "SD 1.5"
    assert manager["civitai"] == {"trainedWords": ["elara"]}
    assert json.loads(manager["usage_tips"]) == {"strength": 0.8}
    assert content(files.card) == {
        "description": "Elara: 1girl, red hair",
        "sd version": "SD1",
        "activation text": "elara",
        "preferred weight": 0.8,
    }


def test_what_people_wrote_into_the_cards_stays(tmp_path: Path, lora: Path, preview: Path) -> None:
    files = FolderPublisher().publish(lora, preview, card("Elara"), tmp_path, "elara")
    files.metadata.write_text(json.dumps(content(files.metadata) | {"favorite": True, "notes": "mine"}))
    files.card.write_text(json.dumps(content(files.card) | {"notes": "also mine"}))
    FolderPublisher().publish(lora, preview, card("Elara", "elara2"), tmp_path, "elara")
    manager = content(files.metadata)
    assert manager["favorite"] is True
    assert (manager["notes"], manager["trigger"]) == ("mine", "elara2")
    assert content(files.card)["notes"] == "also mine"


def test_another_characters_file_is_never_overwritten(tmp_path: Path, lora: Path, preview: Path) -> None:
    FolderPublisher().publish(lora, preview, card("Elara"), tmp_path / "loras", "same")
    before = lora.read_bytes()
    write_lora(lora, 0.25)
    with pytest.raises(InputError, match=r"'Elara'.*--output-name"):
        FolderPublisher().publish(lora, preview, card("Zoë"), tmp_path / "loras", "same")
    assert (tmp_path / "loras" / "same.safetensors").read_bytes() == before


@pytest.mark.parametrize("suffix", [".safetensors", ".preview.png", ".json"])
def test_a_file_of_unknown_origin_is_never_overwritten(
    tmp_path: Path, lora: Path, preview: Path, suffix: str
) -> None:
    (tmp_path / "loras").mkdir()
    (tmp_path / "loras" / f"same{suffix}").write_bytes(b"somebody's")
    with pytest.raises(InputError, match="not made here"):
        FolderPublisher().publish(lora, preview, card("Zoë"), tmp_path / "loras", "same")
    assert [path.read_bytes() for path in (tmp_path / "loras").iterdir()] == [b"somebody's"]


@pytest.mark.parametrize("text", [b"{}", b"[1]", b"\xff", b"not json", b'{"character": 3}'])
def test_metadata_of_another_program_is_never_overwritten(
    tmp_path: Path, lora: Path, preview: Path, text: bytes
) -> None:
    (tmp_path / "same.metadata.json").write_bytes(text)
    with pytest.raises(InputError, match="somebody else"):
        FolderPublisher().publish(lora, preview, card("Zoë"), tmp_path, "same")
    assert (tmp_path / "same.metadata.json").read_bytes() == text


@pytest.mark.parametrize("good_writes", [0, 1, 2, 3])
def test_a_full_disk_leaves_nothing_half_made(
    tmp_path: Path, lora: Path, preview: Path, monkeypatch: pytest.MonkeyPatch, good_writes: int
) -> None:
    real, done = storage.os.fsync, 0

    def fsync(descriptor: int) -> None:
        nonlocal done
        done += 1
        if done > good_writes:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(storage.os, "fsync", fsync)
    with pytest.raises(StorageError, match="full"):
        FolderPublisher().publish(lora, preview, card("Zoë"), tmp_path / "loras", "same")
    assert not list((tmp_path / "loras").iterdir())
    monkeypatch.setattr(storage.os, "fsync", real)
    FolderPublisher().publish(lora, preview, card("Zoë"), tmp_path / "loras", "same")
    assert len(list((tmp_path / "loras").iterdir())) == 4


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path, lora: Path, preview: Path) -> None:
    (tmp_path / "loras").write_bytes(b"a file")
    with pytest.raises(StorageError, match="loras"):
        FolderPublisher().publish(lora, preview, card("Zoë"), tmp_path / "loras", "same")
