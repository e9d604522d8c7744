"""A person's changes to a set through the API: on the chosen pictures alone, each of them undone again, one drawn anew."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import requests
from fastapi.testclient import TestClient
from PIL import Image

from lora_foundry.domain.dataset import Crops
from lora_foundry.errors import StorageError
from lora_foundry.files.images import read_record
from lora_foundry.files.paths import RunPaths
from lora_foundry.files.storage import require_model
from lora_foundry.files.training_set import list_set, read_set
from lora_foundry.settings import Settings
from lora_foundry.web import set_history
from tests.contract.web.conftest import serving
from tests.homes import ELARA, SMALL

PATIENCE = 120


def captions(paths: RunPaths) -> dict[str, str]:
    return {path.name: path.read_text() for path in sorted(paths.images.glob("*.txt"))}


@pytest.fixture
def base(pipeline: str) -> str:
    return f"{pipeline}/dataset"


def test_many_are_changed_only_where_they_were_chosen(client: TestClient, base: str, paths: RunPaths) -> None:
    before = captions(paths)
    files = ["elara_001.png", "elara_002.png"]
    client.post(f"{base}/tags", json={"add": ["crown"], "files": files})
    client.post(
        f"{base}/replace", json={"find": "High QUALITY", "replace": "masterpiece", "files": files[:1]}
    )
    now = captions(paths)
    assert [name for name, text in now.items() if "crown" in text] == ["elara_001.txt", "elara_002.txt"]
    assert [name for name, text in now.items() if "masterpiece" in text] == ["elara_001.txt"]
    assert now["elara_003.txt"] == before["elara_003.txt"]
    client.post(f"{base}/exclude", json={"files": files, "reason": "six fingers"})
    counts = client.get(base).json()["counts"]
    assert (counts["included"], counts["excluded"]) == (2, 2)
    client.post(f"{base}/restore", json={"files": files[:1]})
    assert client.get(base).json()["counts"]["excluded"] == 1


def test_every_change_is_undone_the_newest_first(client: TestClient, base: str, paths: RunPaths) -> None:
    before = captions(paths)
    client.put(f"{base}/elara_001.png/caption", json={"caption": "elara, mine"})
    client.post(f"{base}/tags", json={"add": ["crown"]})
    client.post(f"{base}/replace", json={"find": "crown", "replace": "hat"})
    client.post(f"{base}/elara_002.png/exclude")
    client.post(f"{base}/elara_002.png/restore")
    said = []
    while (words := client.get(base).json()["undo"]) is not None:
        assert client.post(f"{base}/undo").json() == {"words": words}
        said.append(words)
    assert said == [
        "took elara_002.png back",
        "excluded elara_002.png",
        "replaced 'crown' with 'hat'",
        "added crown",
        "changed the caption of elara_001.png",
    ]
    assert captions(paths) == before
    assert client.get(base).json()["counts"]["excluded"] == 0
    assert client.post(f"{base}/undo").status_code == 409


def test_what_another_program_changed_since_is_not_undone(
    client: TestClient, base: str, paths: RunPaths
) -> None:
    client.post(f"{base}/tags", json={"add": ["crown"]})
    file = paths.images / "elara_003.txt"
    file.write_text("elara, written elsewhere\n")
    refused = client.post(f"{base}/undo")
    assert refused.status_code == 409
    assert "elara_003.png" in refused.json()["detail"]
    assert file.read_text() == "elara, written elsewhere\n"
    assert "crown" in captions(paths)["elara_001.txt"]


@pytest.mark.parametrize(
    ("address", "asked"),
    [
        ("replace", {"find": "elara", "replace": "nobody"}),
        ("replace", {"find": "  ", "replace": "x"}),
        ("exclude", {"files": ["elara_001.png", "nobody.png"]}),
    ],
)
def test_nothing_is_written_where_a_part_is_refused(
    client: TestClient, base: str, paths: RunPaths, address: str, asked: dict[str, Any]
) -> None:
    before = captions(paths)
    assert client.post(f"{base}/{address}", json=asked).status_code in (404, 422)
    assert captions(paths) == before
    assert client.get(base).json()["counts"]["excluded"] == 0
    assert client.get(base).json()["undo"] is None


@pytest.mark.usefixtures("forked_children")
def test_a_picture_is_drawn_again_from_another_seed_and_brought_back(finished: Path) -> None:
    paths = RunPaths(finished / "datasets" / "Elara", "elara")
    picture = paths.image(0)
    before = picture.read_bytes()
    with serving(Settings(home=finished)) as address, requests.Session() as session:
        asked = {
            "name": ELARA.name,
            "description": ELARA.description,
            "recipe": "mini",
            "settings": list(SMALL),
        }
        made = session.post(f"{address}/api/v1/pipelines", json=asked).json()
        base = f"{address}/api/v1/pipelines/{made['id']}/dataset"
        first = read_record(picture)
        begun = session.post(f"{base}/elara_001.png/redraw")
        assert (begun.status_code, begun.json()["state"]) == (202, "running")
        assert session.post(f"{base}/elara_002.png/redraw").status_code == 503
        assert session.post(f"{base}/nobody.png/redraw").status_code in (404, 503)
        end = time.monotonic() + PATIENCE
        while (state := session.get(base).json()["redraw"])["state"] == "running":
            assert time.monotonic() < end, state
            time.sleep(0.2)
        assert state["error"] == ""
        again = read_record(picture)
        assert first is not None
        assert again is not None
        assert (again.shot, again.attempt) == (first.shot, first.attempt + 1)
        assert again.request.seed != first.request.seed
        assert session.get(base).json()["undo"] == "drew elara_001.png again"
        session.post(f"{base}/undo")
    assert picture.read_bytes() == before


def test_a_mark_that_another_program_changed_is_not_taken_back(
    client: TestClient, base: str, paths: RunPaths
) -> None:
    client.post(f"{base}/elara_001.png/exclude")
    paths.exclusions.unlink()
    client.post(f"{base}/elara_002.png/exclude")
    client.post(f"{base}/undo")
    refused = client.post(f"{base}/undo")
    assert refused.status_code == 409
    assert "another program" in refused.json()["detail"]
    assert client.get(base).json()["undo"] is None


def test_a_drawn_picture_that_cannot_be_put_in_place_leaves_the_old_one(paths: RunPaths) -> None:
    old = (paths.images / "elara_001.png").read_bytes()
    with pytest.raises(StorageError):
        set_history.put_picture(paths, "elara_001.png", paths.edits / "drawn.png")
    assert (paths.images / "elara_001.png").read_bytes() == old
    assert set_history.last_step(paths) is None


def test_a_change_that_was_broken_off_can_be_undone(paths: RunPaths) -> None:
    before = captions(paths)

    def broken_off() -> None:
        with set_history.recorded(paths, "added crown"):
            (paths.images / "elara_001.txt").write_text("elara, crown\n")
            raise StorageError("The disk is full.")

    with pytest.raises(StorageError):
        broken_off()
    set_history.undo(paths)
    assert captions(paths) == before


HALF = {"left": 8, "top": 4, "width": 32, "height": 40}


def test_a_crop_takes_the_place_of_a_picture_with_caption_and_mask_and_is_undone(
    client: TestClient, base: str, paths: RunPaths
) -> None:
    picture, before = paths.image(0), captions(paths)
    whole = picture.read_bytes()
    paths.masks.mkdir()
    with Image.open(picture) as image:
        image.convert("L").resize((128, 128)).save(paths.masks / picture.name)
    client.post(f"{base}/exclude", json={"files": ["elara_002.png"]})
    made = client.post(f"{base}/elara_001.png/crop", json=HALF)
    assert made.status_code == 201, made.text
    assert (made.json()["file"], made.json()["cut_from"]) == ("elara_001.crop.png", "elara_001.png")
    assert (made.json()["width"], made.json()["height"]) == (32, 40)
    assert made.json()["caption"] == before["elara_001.txt"].strip()
    assert picture.read_bytes() == whole, "the picture itself was changed"
    with Image.open(paths.masks / "elara_001.crop.png") as mask:
        assert mask.size == (64, 80)
    assert [each.name for each in read_set(paths).pictures] == [
        "elara_001.crop.png",
        "elara_003.png",
        "elara_004.png",
    ]
    assert client.post(f"{base}/undo").json() == {"words": "cropped elara_001.png"}
    assert captions(paths) == before
    assert [each.name for each in list_set(paths).pictures if "crop" in each.name] == []
    assert list(paths.masks.iterdir()) == [paths.masks / picture.name]
    assert client.get(base).json()["counts"] == {"included": 3, "excluded": 1, "rejected": 1}


def test_a_crop_of_a_crop_is_known_by_the_first_picture(
    client: TestClient, base: str, paths: RunPaths
) -> None:
    client.post(f"{base}/elara_001.png/crop", json=HALF)
    again = client.post(
        f"{base}/elara_001.crop.png/crop", json={"left": 1, "top": 2, "width": 20, "height": 20}
    )
    assert (again.json()["file"], again.json()["cut_from"]) == ("elara_001.crop-2.png", "elara_001.png")
    crops = require_model(paths.crops, Crops, "curate").files
    assert crops["elara_001.crop-2.png"].box == (9, 6, 29, 26)
    names = [each.name for each in read_set(paths).pictures]
    assert "elara_001.crop-2.png" in names
    assert "elara_001.crop.png" not in names
    client.post(f"{base}/undo")
    assert "elara_001.crop.png" in [each.name for each in read_set(paths).pictures]


def test_a_crop_of_a_drawing_that_was_made_anew_is_left_out_and_says_why(
    client: TestClient, base: str, paths: RunPaths
) -> None:
    client.post(f"{base}/elara_001.png/crop", json=HALF)
    Image.new("RGB", (64, 64), "red").save(paths.image(0))
    shown = {each["file"]: each for each in client.get(base).json()["images"]}
    assert shown["elara_001.png"]["status"] == "included"
    assert shown["elara_001.crop.png"]["status"] == "excluded"
    assert "drawn anew" in shown["elara_001.crop.png"]["reason"]
    assert "elara_001.crop.png" not in [each.name for each in read_set(paths).pictures]


@pytest.mark.parametrize(
    "area",
    [
        {"left": 40, "top": 0, "width": 32, "height": 32},
        {"left": 0, "top": 0, "width": 64, "height": 64},
        {"left": 0, "top": 0, "width": 4, "height": 64},
        {"left": -1, "top": 0, "width": 32, "height": 32},
        {"left": 0, "top": 0, "width": 10**9, "height": 32},
    ],
)
def test_a_part_that_is_none_of_the_picture_is_refused_and_nothing_is_left_behind(
    client: TestClient, base: str, paths: RunPaths, area: dict[str, int]
) -> None:
    refused = client.post(f"{base}/elara_001.png/crop", json=area)
    assert refused.status_code == 422
    assert list_set(paths).find("elara_001.crop.png") is None
    assert client.get(base).json()["undo"] is None


def test_a_crop_whose_file_was_changed_since_stays(client: TestClient, base: str, paths: RunPaths) -> None:
    client.post(f"{base}/elara_001.png/crop", json=HALF)
    Image.new("RGB", (32, 40), "red").save(paths.images / "elara_001.crop.png")
    assert client.post(f"{base}/undo").status_code == 409
    assert (paths.images / "elara_001.crop.png").is_file()


@pytest.mark.parametrize(
    "data",
    [
        b"\xff\xfe\x00\xd8elara",
        "elara, schöne Krone".encode("cp1252"),
        b"elara,\n\n  a crown\n",
        bytes(range(1, 256)),
    ],
)
def test_undoing_a_caption_brings_its_file_back_byte_for_byte(
    client: TestClient, base: str, paths: RunPaths, data: bytes
) -> None:
    file = paths.images / "elara_001.txt"
    file.write_bytes(data)
    assert client.put(f"{base}/elara_001.png/caption", json={"caption": "elara, mine"}).status_code == 200
    client.post(f"{base}/tags", json={"add": ["crown"]})
    for _ in range(2):
        assert client.post(f"{base}/undo").status_code == 200
    assert file.read_bytes() == data


def test_what_is_too_large_to_be_a_caption_is_not_written_over(
    client: TestClient, base: str, paths: RunPaths
) -> None:
    file = paths.images / "elara_001.txt"
    file.write_bytes(b"x" * 200_000)
    refused = client.put(f"{base}/elara_001.png/caption", json={"caption": "elara, mine"})
    assert refused.status_code == 409
    assert "too large to be a caption" in refused.json()["detail"]
    assert file.stat().st_size == 200_000


def test_a_picture_that_is_left_out_is_not_cropped(client: TestClient, base: str, paths: RunPaths) -> None:
    assert client.post(f"{base}/elara_001.png/crop", json=HALF).status_code == 201
    again = client.post(f"{base}/elara_001.png/crop", json=HALF)
    assert again.status_code == 409
    assert "restore it first" in again.json()["detail"]
    assert list_set(paths).find("elara_001.crop-2.png") is None
