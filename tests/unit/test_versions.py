"""Versions of a character: another request keeps what stood there whole, the same one goes on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from lora_foundry.domain.character import Character
from lora_foundry.domain.run import Again, Run
from lora_foundry.errors import InputError
from lora_foundry.files.locks import claim
from lora_foundry.files.paths import RunPaths
from lora_foundry.files.versions import continued, current_run, folder_of, numbered, working_folder
from lora_foundry.recipe_files import load_recipe


def run_of(root: Path, description: str, **values: object) -> Run:
    character = Character(name="Nyx", description=description)
    return Run(
        character=character,
        recipe=load_recipe("mini"),
        dataset_dir=root,
        lora_dir=root,
        output_name="nyx",
        **values,
    )  # type: ignore[arg-type]


def begin(root: Path, run: Run) -> RunPaths:
    """A run begins in a folder and leaves a picture, a caption and a log, each with its words."""
    paths = RunPaths(root, "nyx")
    claim(paths, run)
    paths.images.mkdir(exist_ok=True)
    aside = paths.images / "aside.part"
    aside.write_text(run.character.description)
    aside.rename(paths.image(0))
    with (paths.root / "log.txt").open("a") as log:
        log.write(run.character.description)
    return paths


def contents(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): path.read_text()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "run.json" and "versions" not in path.relative_to(folder).parts
    }


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "Nyx"
    folder.mkdir()
    return folder


def test_another_request_keeps_the_earlier_version_whole(root: Path) -> None:
    first = begin(root, run_of(root, "purple hair"))
    first.lock.touch()
    was = contents(root)
    was.pop(".lock")
    second = numbered(run_of(root, "blue hair"), "new")
    assert second.version == 2
    begin(root, second)
    kept = first.version(1)
    assert contents(kept) == was
    assert contents(root)["log.txt"] == "purple hairblue hair", "what may still fit is taken over"
    now, then = current_run(root), current_run(kept)
    assert now is not None and then is not None  # noqa: PT018
    assert (now.version, then.version, then.dataset_dir) == (2, 1, kept)
    begin(root, second)  # it goes on: nothing is kept a second time
    begin(root, numbered(run_of(root, "red hair"), "new"))
    assert sorted(path.name for path in first.versions.iterdir()) == ["01", "02"]
    assert contents(kept) == was


@pytest.mark.parametrize("name", ["images/mine.png", "images/nyx_001.png", "masks/mine.png"])
def test_a_picture_that_is_edited_in_place_stays_as_it_was_in_the_version_before(
    root: Path, name: str
) -> None:
    first = begin(root, run_of(root, "purple hair"))
    large = [
        root / "training" / "lora.safetensors",
        root / "evaluation" / "pictures" / "before" / "001_1.png",
    ]
    for path in (root / name, *large):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"before")
    begin_again = numbered(run_of(root, "blue hair"), "new")
    claim(first, begin_again)
    with (root / name).open("r+b") as file:  # as a painting program saves
        file.write(b"edited")
    kept = first.version(1)
    assert (kept / name).read_bytes() == b"before"
    assert all((kept / path.relative_to(root)).samefile(path) for path in large), (
        "what only stages write is linked"
    )


def test_replacing_keeps_what_a_person_has_brought(root: Path) -> None:
    paths = begin(root, run_of(root, "purple hair"))
    (paths.images / "photo.cr2").write_bytes(b"a camera's own format, which is left out")
    paths.exclusions.write_text("{}")
    begin(root, numbered(run_of(root, "red hair"), "replace"))
    assert (paths.images / "photo.cr2").is_file()
    assert paths.exclusions.is_file()
    assert contents(root)["log.txt"] == "red hair"


def test_replacing_removes_and_continuing_goes_on(root: Path) -> None:
    begin(root, run_of(root, "purple hair"))
    begin(root, numbered(run_of(root, "blue hair"), "continue"))
    assert contents(root)["log.txt"] == "purple hairblue hair"
    begin(root, numbered(run_of(root, "red hair"), "replace"))
    assert contents(root)["log.txt"] == "red hair"
    assert not RunPaths(root, "").versions.exists()


@pytest.mark.parametrize("again", ["new", "continue", "replace"])
def test_the_same_request_goes_on_whatever_is_said_of_others(root: Path, again: Again) -> None:
    run = run_of(root, "purple hair")
    begin(root, run)
    assert continued(current_run(root), run, again) == 1


def test_where_a_version_lies(root: Path) -> None:
    assert folder_of(root, 1) == folder_of(root, None) == working_folder(root, 7) == root
    begin(root, run_of(root, "blue hair", version=3))
    earlier = RunPaths(root, "").version(2)
    assert folder_of(root, 3) == folder_of(root, None) == root
    assert folder_of(root, 2) == working_folder(root, 2) == earlier
    assert folder_of(root, 4) != root, "one that has not begun shows nobody else's pictures"
    assert working_folder(root, 4) == root


def test_a_folder_of_before_there_were_versions_is_the_first(root: Path) -> None:
    old = json.loads(run_of(root, "purple hair").model_dump_json(exclude={"version", "replaces"}))
    (root / "run.json").write_text(json.dumps(old))
    now = current_run(root)
    assert now is not None
    assert now.version == 1


def test_keeping_that_was_broken_off_is_done_again(root: Path) -> None:
    paths = begin(root, run_of(root, "purple hair"))
    half = paths.versions / ".01.keeping"
    half.mkdir(parents=True)
    (half / "rest").touch()
    begin(root, numbered(run_of(root, "blue hair"), "new"))
    assert contents(paths.version(1)) == {"images/nyx_001.png": "purple hair", "log.txt": "purple hair"}
    assert not half.exists()


@pytest.mark.parametrize("said_by", ["card", "LoRA"])
def test_a_name_whose_lora_would_take_anothers_file_is_refused_before_anything_is_made(
    tmp_path: Path, said_by: str
) -> None:
    loras = tmp_path / "loras"
    loras.mkdir()
    told = {"lora_foundry.character": json.dumps({"name": "NYX"})} if said_by == "LoRA" else None
    save_file({"x": np.zeros(1, np.float16)}, loras / "nyx.safetensors", metadata=told)
    if said_by == "card":
        (loras / "nyx.metadata.json").write_text(json.dumps({"character": "NYX"}))
    root = tmp_path / "nyx"
    run = run_of(root, "purple hair").model_copy(update={"lora_dir": loras})
    root.mkdir()
    with pytest.raises(InputError, match="belongs to the character 'NYX'"):
        claim(RunPaths(root, "nyx"), run)
    assert list(root.iterdir()) == []
    same = run.model_copy(update={"character": Character(name="NYX", description="purple hair")})
    claim(RunPaths(root, "nyx"), same)
