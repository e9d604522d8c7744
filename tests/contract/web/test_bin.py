"""Deleting through the API: what goes to the bin, what comes back, what is gone."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from typer.testing import CliRunner

from lora_foundry.cli.app import app
from lora_foundry.domain.publication import Publication
from lora_foundry.domain.run import Run
from lora_foundry.files.bin import KEPT, BinEntry
from lora_foundry.files.hashing import file_hash
from lora_foundry.files.locks import FolderLock
from lora_foundry.files.paths import BinPaths, RunPaths
from lora_foundry.files.storage import read_model, write_model
from lora_foundry.settings import Settings
from lora_foundry.web.trials import new_trial
from tests.contract.web.conftest import ELARA, serving
from tests.painted import tree

PIPELINES = "/api/v1/pipelines"


@pytest.fixture
def ended(client: TestClient, pipeline: str) -> str:
    """A pipeline that was cancelled; its folder is that of `paint_set` where a test has one."""
    client.post(f"{pipeline}/cancel")
    return pipeline


def test_a_run_that_is_not_over_is_not_deleted(client: TestClient, pipeline: str, paths: RunPaths) -> None:
    refused = client.delete(pipeline)
    assert refused.status_code == 409
    assert "cancel it first" in refused.json()["detail"]
    assert paths.images.is_dir()


def test_a_run_is_deleted_and_comes_back_as_it_was(client: TestClient, ended: str, paths: RunPaths) -> None:
    paths.lock.touch()
    before = tree(paths.root)
    entry = client.delete(ended).json()
    assert (entry["thing"], entry["name"]) == ("run", "Elara")
    assert entry["bytes"] > 100
    assert not paths.root.exists()
    assert client.get(PIPELINES).json()["total"] == 0
    gone = client.get(ended)
    assert gone.status_code == 404
    assert "in the bin" in gone.json()["detail"]
    assert [each["id"] for each in client.get("/api/v1/bin").json()] == [entry["id"]]

    assert client.post(f"/api/v1/bin/{entry['id']}/restore").status_code == 200
    assert tree(paths.root) == before
    assert client.get(ended).json()["status"] == "cancelled"
    assert client.get("/api/v1/bin").json() == []


def test_what_is_removed_for_good_leaves_no_rows(client: TestClient, ended: str, paths: RunPaths) -> None:
    entry = client.delete(ended).json()["id"]
    assert client.delete(f"/api/v1/bin/{entry}").json() == {"removed": 1}
    assert client.get("/api/v1/tasks").json()["tasks"] == []
    assert client.get(ended).status_code == 404
    assert client.post(f"/api/v1/bin/{entry}/restore").status_code == 404


def test_nothing_is_written_over_by_what_comes_back(client: TestClient, ended: str, paths: RunPaths) -> None:
    entry = client.delete(ended).json()["id"]
    paths.root.mkdir()
    (paths.root / "new.txt").write_text("newer")
    refused = client.post(f"/api/v1/bin/{entry}/restore")
    assert refused.status_code == 409
    assert str(paths.root) in refused.json()["detail"]
    assert (paths.root / "new.txt").read_text() == "newer"
    assert len(client.get("/api/v1/bin").json()) == 1


def test_a_folder_that_another_run_works_in_stays(client: TestClient, ended: str, paths: RunPaths) -> None:
    asked: dict[str, Any] = ELARA | {"settings": ["train.rank=8"]}
    other = client.post(PIPELINES, json=asked).json()["id"]
    with_same_folder = client.get(f"{PIPELINES}/{other}").json()["dataset_dir"]
    first = client.get(ended).json()["dataset_dir"]
    client.delete(ended)
    assert paths.images.is_dir() == (with_same_folder == first)


def test_earlier_versions_stay_when_the_current_one_goes(
    client: TestClient, ended: str, paths: RunPaths
) -> None:
    kept = paths.version(1)
    run = read_model(paths.run_file, Run)
    assert run is not None
    write_model(kept / "run.json", run.model_copy(update={"dataset_dir": kept}))
    (kept / "images").mkdir()
    entry = client.delete(ended).json()["id"]
    assert kept.is_dir()
    assert not paths.images.exists()
    client.post(f"/api/v1/bin/{entry}/restore")
    assert paths.images.is_dir()
    assert paths.run_file.is_file()


def test_a_dataset_and_a_lora_are_deleted_alone(
    client: TestClient, ended: str, paths: RunPaths, settings: Settings
) -> None:
    client.delete(f"{ended}/dataset")
    assert not paths.images.exists()
    assert (paths.training / "loss.csv").is_file()
    assert client.get(ended).status_code == 200
    settings.loras_dir.mkdir(parents=True)
    for ending in (".safetensors", ".preview.png", ".metadata.json"):
        (settings.loras_dir / f"elara{ending}").write_bytes(b"x")
    (settings.loras_dir / "else.safetensors").write_bytes(b"y")
    entry = client.delete("/api/v1/loras/elara").json()
    assert [path.name for path in settings.loras_dir.iterdir()] == ["else.safetensors"]
    client.post(f"/api/v1/bin/{entry['id']}/restore")
    assert len(list(settings.loras_dir.iterdir())) == 4
    assert client.delete("/api/v1/loras/..%2Felse").status_code == 404
    assert client.delete("/api/v1/bin").json() == {"removed": 1}


def test_the_bin_is_emptied_of_what_is_old(client: TestClient, ended: str, settings: Settings) -> None:
    name = client.delete(ended).json()["id"]
    file = BinPaths(settings.home, name).entry
    entry = read_model(file, BinEntry)
    assert entry is not None
    write_model(file, entry.model_copy(update={"at": entry.at - timedelta(days=KEPT, minutes=1)}))
    assert client.get("/api/v1/bin").json() == []
    assert not Path(file).exists()
    assert client.get("/api/v1/tasks").json()["tasks"] == []


def test_pictures_that_another_run_waits_for_are_not_deleted(client: TestClient, ended: str) -> None:
    again = client.post(PIPELINES, json=ELARA).json()["id"]  # the same request goes on in the same folder
    images = Path(client.get(ended).json()["dataset_dir"]) / "images"
    assert client.get(f"{PIPELINES}/{again}").json()["dataset_dir"] == str(images.parent)
    images.mkdir(parents=True)
    assert client.delete(f"{ended}/dataset").status_code == 409
    assert images.is_dir()
    client.post(f"{PIPELINES}/{again}/cancel")
    assert client.delete(f"{ended}/dataset").status_code == 200
    assert not images.exists()


def test_a_run_at_work_without_a_row_keeps_its_folder(
    client: TestClient, ended: str, paths: RunPaths
) -> None:
    with FolderLock(paths.lock):
        for what in (ended, f"{ended}/dataset"):
            assert client.delete(what).status_code == 409
    assert paths.images.is_dir()
    assert client.get("/api/v1/bin").json() == []


def test_a_run_takes_no_newer_lora_of_the_same_name_along(
    client: TestClient, ended: str, paths: RunPaths, settings: Settings
) -> None:
    settings.loras_dir.mkdir(parents=True)
    lora = settings.loras_dir / "elara_mini.safetensors"
    lora.write_bytes(b"of this run")
    publication = Publication(published=True, verdict="", lora=lora, sha256=file_hash(lora))
    write_model(paths.publication, publication)
    lora.write_bytes(b"of the next version")
    entry = client.delete(ended, params={"lora": True}).json()["id"]
    assert lora.read_bytes() == b"of the next version"
    client.post(f"/api/v1/bin/{entry}/restore")
    lora.write_bytes(b"of this run")
    client.delete(ended, params={"lora": True})
    assert not lora.exists()


def test_a_run_whose_lora_is_being_tried_is_not_deleted(
    client: TestClient, ended: str, paths: RunPaths, settings: Settings
) -> None:
    trial = new_trial("elara", "", 1.0, (1,))
    write_model(paths.trial(trial.id).result, trial)
    site = cast(FastAPI, client.app).state.site
    site.trials._running[trial.id] = None
    assert client.delete(ended).status_code == 409
    site.trials._running.clear()
    assert client.delete(ended).status_code == 200


def test_a_run_in_the_bin_is_run_again_through_no_door(
    client: TestClient, settings: Settings, ended: str, paths: RunPaths
) -> None:
    run = ended.rpartition("/")[2]
    task = client.get(ended).json()["stages"][0]["task_id"]
    entry = client.delete(ended).json()
    by_api = client.post(f"/api/v1/tasks/{task}/retry")
    assert by_api.status_code == 422
    assert "in the bin" in by_api.json()["detail"]
    for reference in (run, str(task)):
        said = CliRunner().invoke(app, ["tasks", "retry", reference, "--home", str(settings.home)])
        assert said.exit_code != 0
        assert "in the bin" in str(said.exception or "") + said.output
    client.post(f"/api/v1/bin/{entry['id']}/restore")
    assert client.post(f"{ended}/retry").status_code == 200


def test_of_many_that_delete_the_same_run_one_does(settings: Settings, paths: RunPaths) -> None:
    async def delete_often(address: str) -> tuple[list[int], int, int]:
        async with httpx.AsyncClient(base_url=address, timeout=60) as client:
            run = f"{PIPELINES}/{(await client.post(PIPELINES, json=ELARA)).json()['id']}"
            await client.post(f"{run}/cancel")
            deleted = await asyncio.gather(*(client.delete(run) for _ in range(6)))
            entries = (await client.get("/api/v1/bin")).json()
            await client.post(f"/api/v1/bin/{entries[0]['id']}/restore")
            return [each.status_code for each in deleted], len(entries), (await client.get(run)).status_code

    with serving(settings) as address:
        codes, entries, found = asyncio.run(delete_often(address))
    assert sorted(codes) == [200, 404, 404, 404, 404, 404]
    assert (entries, found) == (1, 200)
    assert paths.images.is_dir()
