"""`lora-foundry setup` against a hub on loopback: what a recipe needs is listed, fetched, proven and found."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

from lora_foundry import mini
from lora_foundry.errors import BackendError, InputError, StorageError
from lora_foundry.files.download import Extent, fetch, parse_source
from lora_foundry.testing.hub import StubHub
from tests.commands import Commands, Done

Command = Callable[..., Done]
# The hub's client reads its environment when it is imported: the forked process, which has imported it, imports it anew.
PROGRAM = """
import sys
READ_EARLY = ("huggingface_hub", "lora_foundry.hubs", "lora_foundry.backends.onnx")
for name in list(sys.modules):
    if any(name == each or name.startswith(each + ".") for each in READ_EARLY):
        del sys.modules[name]
from lora_foundry.cli.app import main
main()
"""
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
def command(hub: StubHub, tmp_path: Path, commands: Commands) -> Command:
    """The program in a process of its own, with this hub's address in its environment."""
    home = tmp_path / "home"
    (home / "recipes").mkdir(parents=True)
    (home / "recipes" / "own.toml").write_text(OWN)
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    environment = {
        "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "0", "LORA_FOUNDRY_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
    }  # fmt: skip

    return lambda *arguments: commands.run(str(program), *arguments, environment=environment)


def rows(done: Done) -> dict[str, dict[str, Any]]:
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


SPLIT = """
extends = "z-image"
[model]
base = "z_image_turbo.safetensors"
source = "hf:somebody/z-image/z_image_turbo.safetensors"
licence = "Apache-2.0"
train_base = ""
tagger = "none"
embedder = "none"
[generate]
rounds = 1
complete_description = false
[caption]
look = []
[train]
training_adapter = "zimage_turbo_training_adapter_v2.safetensors"
"""


def headed(tensors: dict[str, tuple[int, ...]]) -> bytes:
    return save({name: torch.zeros(shape, dtype=torch.uint8) for name, shape in tensors.items()})


@pytest.fixture
def split_hub(hub: StubHub) -> StubHub:
    """The files of Z-Image by their headers, where the family says that they are."""
    parts = "split_files/{}".format
    hub.repositories |= {
        "somebody/z-image": {"z_image_turbo.safetensors": headed(
            {"noise_refiner.0.attention.q_norm.weight": (1,), "layers.0.feed_forward.w2.weight": (3840, 1)}
        )},
        "Comfy-Org/z_image_turbo": {
            parts("vae/ae.safetensors"): headed({"decoder.conv_in.weight": (2, 16, 1, 1)}),
            parts("text_encoders/qwen_3_4b.safetensors"): headed(
                {"model.embed_tokens.weight": (1, 2560), "model.layers.35.mlp.up_proj.weight": (1, 1)}
            ),
        },
        "ostris/zimage_turbo_training_adapter": {
            "zimage_turbo_training_adapter_v2.safetensors": headed({"x.lora_A.weight": (1,)})
        },
        "Qwen/Qwen3-4B": dict.fromkeys(
            ("vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json"), b"{}"
        ),
    }  # fmt: skip
    return hub


def test_what_belongs_to_a_base_in_split_files_is_fetched_with_it(
    split_hub: StubHub, command: Command, tmp_path: Path
) -> None:
    home, models = tmp_path / "home", tmp_path / "home" / "models"
    (home / "recipes" / "split.toml").write_text(SPLIT)
    done = command("setup", "split", "--yes", "--json")
    assert done.returncode == 0, done.stderr + done.stdout
    found = {row["what"]: row["found"] for row in json.loads(done.stdout)}
    assert found == {
        "base model": str(models / "z_image_turbo.safetensors"),
        "VAE": str(models / "vae" / "ae.safetensors"),
        "text encoder": str(models / "text_encoders" / "qwen_3_4b.safetensors"),
        "training adapter": str(models / "loras" / "zimage_turbo_training_adapter_v2.safetensors"),
        "Qwen3's vocabulary": found["Qwen3's vocabulary"],
    }
    assert not any("clip" in asked for asked, _ in split_hub.requests)

    (models / "vae" / "ae.safetensors").unlink()
    ill = command("doctor", "-r", "split", "--json")
    missing = {line["subject"]: line for line in json.loads(ill.stdout) if not line["ok"]}
    assert sorted(missing) == ["VAE", "base model of recipe 'split'"]
    assert all("lora-foundry setup split" in line["fix"] for line in missing.values())
    assert "its VAE is in none of" in missing["base model of recipe 'split'"]["found"]

    own = command("setup", "split", "--list", "--json", "--set", "model.vae=mine.safetensors")
    vae = rows(own)["mine.safetensors"]
    assert (vae["found"], vae["from"]) == (None, "")
    assert "name its path: --set model.vae=PATH" in vae["advice"]


def test_a_shipped_recipes_base_that_is_not_here_brings_its_familys_vocabulary(command: Command) -> None:
    listed = command("setup", "sdxl", "--list", "--json")
    assert {"vocab.json", "merges.txt"} <= set(rows(listed))
