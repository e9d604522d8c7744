"""The commands that look at a ComfyUI before a run does: `workflows check`, with one picture drawn, and `doctor --set`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from lora_foundry.cli.app import app
from lora_foundry.testing.comfyui_stub import StubServer
from tests.contract.comfyui_exports import hires, saved, titled
from tests.contract.comfyui_fixtures import CHECKPOINT, Server

SMALL = ("generate.width=64", "generate.height=96", "generate.steps=1", "generate.sampler=euler",
         "generate.scheduler=normal", f"generate.checkpoint={CHECKPOINT}", "generate.backend=comfyui")  # fmt: skip


@pytest.fixture
def home(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home whose settings name the server."""
    monkeypatch.setenv("LORA_FOUNDRY_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("LORA_FOUNDRY_COMFYUI_URL", server.url)
    return tmp_path


def command(*words: str, changes: tuple[str, ...] = SMALL) -> Result:
    settings = [part for change in changes for part in ("--set", change)]
    return CliRunner().invoke(app, [*words, *settings])


def test_a_check_draws_one_picture_at_the_recipe_s_size(home: Path) -> None:
    target = home / "one.png"
    done = command("workflows", "check", "sd15", "--draw", str(target))
    assert done.exit_code == 0, done.output
    assert "The server can run it." in done.output
    assert f"{target}: 64x96" in done.output
    with Image.open(target) as picture:
        assert picture.size == (64, 96)
        assert np.asarray(picture).std() > 0


def test_a_check_draws_with_a_reference(home: Path, server: Server) -> None:
    """The workflow's own kind is drawn: one that edits edits the picture that is given."""
    for name in ("red", "blue"):
        Image.new("RGB", (64, 96), name).save(home / f"{name}.png")
        words = ("--draw", str(home / f"to_{name}.png"), "--reference", str(home / f"{name}.png"))
        done = command("workflows", "check", "img2img", *words)
        assert done.exit_code == 0, done.output
    assert (home / "to_red.png").read_bytes() != (home / "to_blue.png").read_bytes()
    without = command("workflows", "check", "img2img", "--draw", str(home / "none.png"))
    assert without.exit_code != 0
    assert not (home / "none.png").exists()


def test_what_cannot_work_is_not_drawn(home: Path, server: Server) -> None:
    unbound = saved(home, hires(titled("6", "")))
    done = command("workflows", "check", str(unbound), "--draw", str(home / "none.png"))
    assert done.exit_code == 2
    assert "fault: " in done.output
    assert "{{prompt}} is bound nowhere" in done.output
    assert not (home / "none.png").exists()
    if server.stub is not None:
        assert "POST /prompt" not in server.stub.requests


def test_the_doctor_is_told_what_a_run_would_be_told(home: Path) -> None:
    def found(*changes: str) -> dict[str, dict[str, object]]:
        done = command("doctor", "-r", "mini", "--json", changes=changes)
        return {line["subject"]: line for line in json.loads(done.output)}

    assert "ComfyUI's checkpoint" not in found()
    assert found(*SMALL)["ComfyUI's checkpoint"]["ok"]
    wrong = found(*SMALL[:-2], "generate.checkpoint=none.safetensors", "generate.backend=comfyui")
    assert not wrong["ComfyUI's checkpoint"]["ok"]
    assert wrong["ComfyUI's checkpoint"]["fix"]


def test_a_server_that_is_away_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with StubServer() as gone:
        monkeypatch.setenv("LORA_FOUNDRY_COMFYUI_URL", gone.url)
    monkeypatch.setenv("LORA_FOUNDRY_HOME", str(tmp_path))
    done = command("workflows", "check", "sd15", "--draw", str(tmp_path / "one.png"))
    assert done.exit_code != 0
    assert not (tmp_path / "one.png").exists()
