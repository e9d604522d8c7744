"""`lora-foundry setup` against a hub on loopback: what a recipe needs is listed, fetched, proven and found."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lora_foundry import mini
from lora_foundry.errors import BackendError, InputError, StorageError
from lora_foundry.files.download import Extent, fetch, parse_source
from lora_foundry.testing.hub import StubHub

Command = Callable[..., subprocess.CompletedProcess[str]]
OWN = """
extends = "mini"
[model]
base = "tiny"
source = "hf:somebody/tiny"
licence = "CC0-1.0"
embedder = "dinov2"
"""


def model_files() -> dict[str, bytes]:
    """The bundled base as a hub would list it, beside files that nobody needs."""
    files = {
        str(path.relative_to(mini.MODEL_DIR)): path.read_bytes()
        for path in mini.MODEL_DIR.rglob("*")
        if path.is_file()
    }
    return files | {"weights.bin": b"pickle", "README.md": b"a card"}


@pytest.fixture
def hub() -> Iterator[StubHub]:
    repositories = {
        "somebody/tiny": model_files(),
        "onnx-community/dinov2-base": {"onnx/model.onnx": os.urandom(300_000)},
        "somebody/file": {"deep/down/base.safetensors": os.urandom(400_000)},
    }
    with StubHub(repositories) as stub:
        yield stub


@pytest.fixture
def command(hub: StubHub, tmp_path: Path) -> Command:
    """The program in a process of its own, since the hub's client reads its environment when it is imported."""
    home = tmp_path / "home"
    (home / "recipes").mkdir(parents=True)
    (home / "recipes" / "own.toml").write_text(OWN)
    environment = os.environ | {
        "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "0", "LORA_FOUNDRY_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
    }  # fmt: skip

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "lora_foundry", *arguments],
            env=environment, capture_output=True, text=True, timeout=200, check=False,
        )  # fmt: skip

    return run


def rows(done: subprocess.CompletedProcess[str]) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in json.loads(done.stdout)}


def test_what_is_missing_is_told_with_size_and_licence_and_fetched_once(
    command: Command, hub: StubHub, tmp_path: Path
) -> None:
    listed = command("setup", "own", "--list", "--json")
    assert listed.returncode == 1, listed.stderr
    base = rows(listed)["tiny"]
    weights = sum(
        len(data) for name, data in model_files().items() if name.endswith((".safetensors", ".json", ".txt"))
    )
    assert (base["found"], base["licence"], base["bytes"]) == (None, "CC0-1.0", weights)
    assert len(rows(listed)["dinov2-base.onnx"]["sha256"]) == 64

    refused = command("setup", "own")
    assert refused.returncode == 2
    assert "--yes" in refused.stderr

    done = command("setup", "own", "--yes")
    assert done.returncode == 0, done.stderr + done.stdout
    folder = tmp_path / "home" / "models" / "tiny"
    assert (folder / "model_index.json").is_file()
    assert not (folder / "weights.bin").exists()
    assert not (tmp_path / "home" / "models" / ".downloads").exists() or not list(
        (tmp_path / "home" / "models" / ".downloads").iterdir()
    )

    hub.requests.clear()
    again = command("setup", "own", "--json")
    assert again.returncode == 0, again.stderr
    assert all(row["found"] for row in rows(again).values())
    assert hub.requests == []

    doctor = command("doctor", "-r", "own", "--json")
    found = {line["subject"]: line for line in json.loads(doctor.stdout)}
    assert found["base model of recipe 'own'"]["ok"]
    assert found["embedder dinov2"]["ok"]


def test_doctor_ends_in_the_command_that_helps(command: Command) -> None:
    ill = command("doctor", "-r", "own", "--json")
    assert ill.returncode == 1
    missing = [line for line in json.loads(ill.stdout) if not line["ok"]]
    assert [line["subject"] for line in missing] == ["base model of recipe 'own'", "embedder dinov2"]
    assert all("lora-foundry setup own" in line["fix"] for line in missing)


def test_a_base_of_ones_own_does_not_come_from_the_recipes_place(command: Command) -> None:
    other = command("setup", "own", "--list", "--json", "--set", "model.base=other.safetensors")
    assert rows(other)["other.safetensors"]["from"] == ""
    assert "Put it into" in rows(other)["other.safetensors"]["advice"]


def test_a_base_at_hand_is_brought_under_the_recipes_name(command: Command, tmp_path: Path) -> None:
    own = tmp_path / "downloads" / "my model"
    for name, data in model_files().items():
        (own / name).parent.mkdir(parents=True, exist_ok=True)
        (own / name).write_bytes(data)
    before = {path: path.read_bytes() for path in own.rglob("*") if path.is_file()}
    done = command("setup", "own", "--base", str(own), "--list", "--json")
    assert rows(done)["tiny"]["found"] == str(tmp_path / "home" / "models" / "tiny")
    assert {path: path.read_bytes() for path in own.rglob("*") if path.is_file()} == before
    twice = command("setup", "own", "--base", str(own))
    assert twice.returncode == 2
    assert "is there already" in twice.stderr


def test_a_gated_repository_says_what_to_do(command: Command, hub: StubHub) -> None:
    hub.gated.add("onnx-community/dinov2-base")
    refused = command("setup", "own", "--yes")
    assert refused.returncode == 2
    assert "HF_TOKEN" in refused.stderr


@pytest.fixture
def large(hub: StubHub) -> tuple[str, bytes]:
    data = hub.repositories["somebody/file"]["deep/down/base.safetensors"]
    return f"{hub.url}/somebody/file/resolve/main/deep/down/base.safetensors", data


def test_a_download_that_broke_off_goes_on(hub: StubHub, large: tuple[str, bytes], tmp_path: Path) -> None:
    url, data = large
    source, target = parse_source(url, "base.safetensors"), tmp_path / "models" / "base.safetensors"
    hub.breaks_after = 150_000
    with pytest.raises(BackendError, match="again"):
        fetch(source, target, Extent(len(data)))
    assert not target.exists()
    seen: list[int] = []
    fetch(source, target, Extent(len(data)), lambda done, total: seen.append(done))
    assert target.read_bytes() == data
    assert hub.requests[-1][1] == "bytes=150000-"
    assert seen[-1] == len(data)
    assert min(seen) > 150_000


def test_a_damaged_file_gets_no_name(large: tuple[str, bytes], tmp_path: Path) -> None:
    url, data = large
    target = tmp_path / "base.safetensors"
    with pytest.raises(BackendError, match="damaged"):
        fetch(parse_source(url, target.name), target, Extent(len(data), "0" * 64))
    assert not target.exists()


def test_a_full_disk_is_told_before_anything_is_fetched(
    hub: StubHub, large: tuple[str, bytes], tmp_path: Path
) -> None:
    with pytest.raises(StorageError, match="GB free"):
        fetch(parse_source(large[0], "base"), tmp_path / "base", Extent(1 << 60))
    assert hub.requests == []


@pytest.mark.parametrize("text", ["hf:one", "hf:a//b", "hf:a/../b", "ftp://x/y", "c:/x", "https://", ""])
def test_what_is_no_place_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="no place"):
        parse_source(text, "x")
