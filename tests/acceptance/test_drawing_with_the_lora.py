"""What the README and the end of `create` say about drawing with the LoRA is run to the letter."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from rich.console import Console

from lora_foundry import Foundry
from lora_foundry.api import CreateResult, result_of
from lora_foundry.cli.terminal import print_use
from lora_foundry.families._shared.inspect import find_base
from tests.homes import ELARA, SMALL

ROOT = Path(__file__).parents[2]


def run(program: str) -> None:
    """Runs a program that is to load a LoRA into a pipeline and to leave picture.png here."""
    space: dict[str, Any] = {}
    exec(compile(program, "the program that we print", "exec"), space)
    assert space["pipeline"].get_active_adapters(), "the LoRA was not loaded"
    with Image.open("picture.png") as picture:
        assert picture.size == (64, 64)
        assert len(set(picture.convert("L").tobytes())) > 10, "the picture is empty"


@pytest.fixture
def result(finished: Path) -> CreateResult:
    made, _ = Foundry(finished).prepare(ELARA, "mini", settings=SMALL)
    there = {
        "lora_path": finished / "loras" / "elara_mini.safetensors"
    }  # the home is a copy of the one it was made in
    return result_of(made, {}).model_copy(update=there)


def test_the_readme_s_program_draws(
    result: CreateResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (program,) = [
        block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "diffusers" in block
    ]
    monkeypatch.chdir(tmp_path)
    shutil.copytree(find_base("mini").path, "path/to/the/base")
    assert result.lora_path is not None
    shutil.copy(result.lora_path, "elara_mini.safetensors")
    assert result.trigger in program
    run(program)


def test_the_program_at_the_end_of_create_draws(
    result: CreateResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    print_use(Console(), result, find_base("mini"))
    said, _, program = capsys.readouterr().out.partition(f"Or in Python ({sys.executable}):\n")
    assert "Load LoRA with elara_mini.safetensors" in said
    assert "begin the prompt with elara." in said
    assert "lora-foundry setup sdxl and lora-foundry create" in said
    monkeypatch.chdir(tmp_path)
    run("\n".join(line.strip() for line in program.splitlines()))


def test_of_a_lora_that_is_not_published_nothing_is_said(
    result: CreateResult, capsys: pytest.CaptureFixture[str]
) -> None:
    print_use(Console(), result.model_copy(update={"published": False}), find_base("mini"))
    assert capsys.readouterr().out == ""
