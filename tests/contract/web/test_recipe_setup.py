"""Choosing a recipe through the API: what it needs, getting it, the bases that are here, and one's own recipe."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from lora_foundry import mini
from lora_foundry.recipe_files import load_recipe
from lora_foundry.settings import Settings
from lora_foundry.testing.hub import StubHub
from lora_foundry.web.recipe_fields import BASIC, fields_of
from tests.contract.test_store import execute

PATIENCE = 120
OWN = """
extends = "mini"
[model]
base = "tiny"
source = "hf:somebody/tiny"
licence = "CC0-1.0"
"""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, settings: Settings) -> Iterator[StubHub]:
    """A hub that has the base of the recipe `own`; the child that asks it reads these variables when it starts."""
    files = {
        str(path.relative_to(mini.MODEL_DIR)): path.read_bytes()
        for path in mini.MODEL_DIR.rglob("*")
        if path.is_file()
    }
    (folder,) = settings.recipe_folders
    folder.mkdir(parents=True)
    (folder / "own.toml").write_text(OWN)
    with StubHub({"somebody/tiny": files}) as stub:
        for name, value in (("HF_ENDPOINT", stub.url), ("HF_HOME", str(tmp_path / "hub")), ("HF_HUB_OFFLINE", "0"),
                            ("HF_HUB_DISABLE_XET", "1")):  # fmt: skip
            monkeypatch.setenv(name, value)
        yield stub


def ended(client: TestClient, address: str) -> Any:
    end = time.monotonic() + PATIENCE
    while (state := client.get(address).json())["state"] == "running":
        assert time.monotonic() < end, state
        time.sleep(0.1)
    return state


def test_what_a_recipe_lacks_is_told_and_fetched(
    client: TestClient, hub: StubHub, settings: Settings
) -> None:
    ready = {each["recipe"]: each for each in client.get("/api/v1/readiness").json()}
    assert ready["mini"]["ready"]
    assert not ready["own"]["ready"]
    (missing,) = [each for each in ready["own"]["needs"] if each["found"] is None]
    assert (missing["name"], missing["licence"], missing["fetchable"]) == ("tiny", "CC0-1.0", True)

    assert client.get("/api/v1/recipes/own/setup").json()["state"] == "none"
    started = client.post("/api/v1/recipes/own/setup")
    assert (started.status_code, started.json()["state"]) == (202, "running")
    assert client.post("/api/v1/recipes/mini/setup").status_code == 409
    state = ended(client, "/api/v1/recipes/own/setup")
    assert state["state"] == "completed", state
    assert state["done"] == state["total"] > 0
    assert (settings.model_folders[0] / "tiny" / "model_index.json").is_file()
    assert client.get("/api/v1/recipes/own/needs").json()["ready"]
    assert {"name": "tiny", "here": True}.items() <= client.get("/api/v1/bases").json()[1].items()


def test_a_download_that_fails_says_why(client: TestClient, hub: StubHub, settings: Settings) -> None:
    (folder,) = settings.recipe_folders
    (folder / "own.toml").write_text(OWN.replace("somebody/tiny", "somebody/else"))
    client.post("/api/v1/recipes/own/setup")
    state = ended(client, "/api/v1/recipes/own/setup")
    assert state["state"] == "failed"
    assert "somebody/else" in state["error"]


def test_a_download_is_stopped(client: TestClient, hub: StubHub) -> None:
    client.post("/api/v1/recipes/own/setup")
    assert client.delete("/api/v1/recipes/own/setup").json()["state"] in ("cancelled", "completed")
    assert client.delete("/api/v1/recipes/nobody/setup").status_code == 404


def test_only_bases_are_listed_with_their_family(client: TestClient, settings: Settings) -> None:
    models = settings.model_folders[0]
    shutil.copytree(mini.MODEL_DIR, models / "deep" / "tiny")
    (models / "broken.safetensors").write_bytes(os.urandom(64))
    found = client.get("/api/v1/bases").json()
    assert [each["name"] for each in found] == ["mini", "tiny"]
    assert found[1]["family"]
    assert found[1]["bytes"] > 1000


def test_changes_are_saved_as_an_own_recipe_that_says_only_what_differs(
    client: TestClient, settings: Settings
) -> None:
    asked: dict[str, Any] = {"name": "mine", "extends": "mini", "description": "mine alone"}
    asked["settings"] = ["train.rank=8", 'train.image_repeats={"a.png" = 3}', 'shots.faceless=["back view"]']
    assert client.post("/api/v1/recipes", json=asked).status_code == 201
    (folder,) = settings.recipe_folders
    text = (folder / "mine.toml").read_text()
    assert text.splitlines()[0] == 'extends = "mini"'
    assert "alpha" not in text
    recipe = load_recipe("mine", folders=(folder,))
    assert (recipe.train.rank, recipe.train.image_repeats, recipe.name) == (8, {"a.png": 3}, "mine")
    again = {"name": "mine", "extends": "mine", "settings": ["train.alpha=4"]}
    assert client.post("/api/v1/recipes", json=again).status_code == 201
    recipe = load_recipe("mine", folders=(folder,))
    assert (recipe.train.rank, recipe.train.alpha) == (8, 4)
    assert client.get("/api/v1/recipes/mine").json()["own"]


@pytest.mark.parametrize(
    "asked",
    [
        {"name": "sdxl", "extends": "mini"},
        {"name": "../x", "extends": "mini"},
        {"name": "mine", "extends": "mini", "settings": ["train.rank=-1"]},
        {"name": "mine", "extends": "mini", "settings": ["train.rnak=1"]},
    ],
)
def test_no_other_recipe_is_written(client: TestClient, settings: Settings, asked: dict[str, Any]) -> None:
    assert client.post("/api/v1/recipes", json=asked).status_code == 422
    assert not settings.recipe_folders[0].exists()


def test_the_basic_fields_are_there_and_every_field_has_a_control() -> None:
    fields = {field.path: field for group in fields_of(load_recipe("mini")) for field in group.fields}
    assert {path for path, field in fields.items() if field.basic} == set(BASIC)
    assert fields["train.image_repeats"].type == "counts"
    assert [path for path, field in fields.items() if field.type == "table"] == ["shots.impossible"]
    assert [
        path for path, field in fields.items() if field.type == "text" and isinstance(field.value, dict)
    ] == []


def test_a_base_that_was_picked_takes_the_place_of_the_missing_one(
    client: TestClient, settings: Settings
) -> None:
    (folder,) = settings.recipe_folders
    folder.mkdir(parents=True)
    (folder / "own.toml").write_text(OWN)
    assert client.get("/api/v1/recipes/own/needs").json()["ready"] is False
    mine = settings.model_folders[0] / "mine"
    shutil.copytree(mini.MODEL_DIR, mine)
    picked = client.get("/api/v1/recipes/own/needs", params={"base": "mine"}).json()
    assert picked["ready"] is True
    elsewhere = client.get("/api/v1/recipes/own/needs", params={"base": "/etc"})
    assert elsewhere.status_code == 404
    assert client.post("/api/v1/recipes/own/setup", params={"base": "../mine"}).status_code == 404


def test_the_first_recipe_is_the_miniature_only_where_nothing_real_is(
    client: TestClient, settings: Settings
) -> None:
    assert client.get("/api/v1/suggestion").json()["recipe"] == "mini"
    (folder,) = settings.recipe_folders
    folder.mkdir(parents=True)
    (folder / "own.toml").write_text(OWN)
    shutil.copytree(mini.MODEL_DIR, settings.model_folders[0] / "tiny")
    found = client.get("/api/v1/suggestion").json()
    assert (found["recipe"], found["base"]) == ("own", "")


@pytest.mark.usefixtures("forked_children")
def test_the_memory_of_a_training_is_counted_by_its_family(client: TestClient) -> None:
    asked = {"name": "Elara", "description": "1girl", "recipe": "mini"}
    first = client.post("/api/v1/memory", json=asked).json()
    assert 0 < first["least"] <= first["as_set"]
    larger = client.post("/api/v1/memory", json=asked | {"settings": ["train.rank=64"]}).json()
    assert larger["as_set"] > first["as_set"]
    missing = client.post("/api/v1/memory", json=asked | {"recipe": "sdxl"})
    assert missing.status_code == 422


def test_the_time_of_a_cast_is_told_from_its_like_or_reckoned_from_one_character(
    client: TestClient, settings: Settings
) -> None:
    """Ten seconds a stage for one character of 8 pictures and 100 steps; nothing is known before."""
    sized = ["generate.images=8", "train.steps=100"]

    def told(**size: Any) -> Any:
        return client.get("/api/v1/recipes/mini/earlier", params=size).json()

    def ended(body: dict[str, Any], seconds: float) -> None:
        made = client.post("/api/v1/pipelines", json={"recipe": "mini", "settings": sized} | body).json()
        rows = ", ".join(str(stage["task_id"]) for stage in made["stages"])
        spent = f"status = 'completed', started_at = '2026-01-01 10:00:00', completed_at = '2026-01-01 10:00:{seconds:02}'"
        execute(settings.task_database, f"UPDATE echo_tasks SET {spent} WHERE id IN ({rows})")

    assert told(characters=3)["seconds"] is None
    ended({"name": "Elara", "description": "1girl"}, 10)
    one = told(images=8, steps=100)
    assert (one["seconds"], one["measured"], one["runs"]) == (60, True, 1)
    three = told(characters=3, images=8, steps=100)
    assert (three["seconds"], three["measured"], three["characters"]) == (5 * 30 + 10, False, 1)
    assert told(images=8, steps=200)["seconds"] == 70
    assert told(own=True, steps=100)["seconds"] == 50  # nothing is drawn

    members = [{"name": name, "description": "1girl"} for name in ("Elara", "Kai", "Zo")]
    ended({"name": "Trio", "members": members}, 40)
    three = told(characters=3, images=8, steps=100)
    assert (three["seconds"], three["measured"], three["characters"]) == (240, True, 3)
    assert told(images=8, steps=100)["seconds"] == 60
    assert client.get("/api/v1/recipes/mini/earlier", params={"characters": 99}).status_code == 422

    waiting = client.post(
        "/api/v1/pipelines", json={"name": "Duo", "members": members[:2], "recipe": "mini"}
    ).json()
    client.get("/api/v1/pipelines")  # learns
    shown = client.get(f"/api/v1/pipelines/{waiting['id']}").json()
    assert shown["eta_seconds"] == pytest.approx(
        5 * 40 * 2 / 3 + 40, abs=1
    )  # three are nearer to two than one is
