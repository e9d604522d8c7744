"""The node pack for ComfyUI against a real lora-foundry server, over its REST API. What only ComfyUI has (its folders, its
models) is played; a ComfyUI that has the pack drives it in a workflow of its own where COMFYUI_URL names one and
COMFYUI_PACK_PORT is the port of its LORA_FOUNDRY_SERVER."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
import uvicorn
from PIL import Image

from lora_foundry.settings import Settings
from lora_foundry.web.app import create_app
from tests.contract.comfyui_fixtures import REAL

PACK_PORT = os.environ.get("COMFYUI_PACK_PORT", "")
PACK = Path(__file__).parents[2] / "integrations" / "comfyui"
CHARACTER = {
    "name": "Elara",
    "description": "1girl, pink hair",
    "recipe": "mini",
    "settings": "",
    "use": "references",
}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home")


@contextmanager
def served(settings: Settings, port: int = 0) -> Iterator[int]:
    """A server of ours, and its port."""
    server = uvicorn.Server(uvicorn.Config(create_app(settings), port=port, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), f"port {port} is taken"
        time.sleep(0.01)
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(10)


@pytest.fixture
def pack(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The pack as ComfyUI imports it, beside a server of ours."""
    with served(settings) as port:
        monkeypatch.setenv("LORA_FOUNDRY_SERVER", f"127.0.0.1:{port}")
        yield imported(monkeypatch)


def imported(monkeypatch: pytest.MonkeyPatch) -> Any:
    spec = importlib.util.spec_from_file_location(
        "pack", PACK / "__init__.py", submodule_search_locations=[str(PACK)]
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    for name in ("pack.nodes", "pack.client"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "pack", module)
    spec.loader.exec_module(module)
    return module


def made(pack: ModuleType, name: str) -> Any:
    return pack.NODE_CLASS_MAPPINGS[name]()


def pictures(count: int = 2) -> Any:
    return np.random.default_rng(0).random((count, 64, 48, 3)).astype(np.float32)


def uploaded(settings: Settings) -> list[Path]:
    return sorted((settings.home / "references").glob("*.png"))


def test_pictures_are_sent_whole_and_each_once(pack: Any, settings: Settings) -> None:
    images = pictures()
    ((first, second),) = made(pack, "LoraFoundrySendPictures").send(images)
    (all_of_them,) = made(pack, "LoraFoundrySendPictures").send(images[:1], (first, second))
    assert all_of_them == (first, second)
    assert {path.name for path in uploaded(settings)} == {first, second}
    with Image.open(settings.home / "references" / first) as kept:
        assert np.array_equal(np.asarray(kept), (images[0] * 255 + 0.5).astype(np.uint8))


def test_a_run_is_started_with_references(pack: Any, settings: Settings) -> None:
    (names,) = made(pack, "LoraFoundrySendPictures").send(pictures(3))
    changed = CHARACTER | {"settings": "# small\ngenerate.images=4\n\n"}
    answer = made(pack, "LoraFoundryTrainCharacter").train(**changed, wait=False, pictures=names)
    run, status = answer["result"]
    assert status == "pending"
    assert "Elara: pending, 0%" in answer["ui"]["text"][0]
    started = pack.nodes.Foundry().run(run)
    generate = started["settings"]["generate"]
    assert generate["images"] == 4
    assert [Path(path).name for path in generate["references"]] == list(names[1:])


def test_a_run_is_started_on_an_own_set(pack: Any, settings: Settings) -> None:
    (names,) = made(pack, "LoraFoundrySendPictures").send(pictures(3))
    made(pack, "LoraFoundryTrainCharacter").train(
        **CHARACTER | {"use": "own set"}, wait=False, pictures=names
    )
    assert len(list((settings.datasets_dir / "Elara" / "images").glob("*.png"))) == 3


def test_a_server_that_stays_away_is_told_at_the_node_that_did_not_wait(
    pack: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody else hears it: an error of a thread is a traceback on ComfyUI's terminal."""
    told: list[str] = []
    monkeypatch.setattr(pack.nodes, "_tell", lambda node, text, share: told.append(text))
    monkeypatch.setattr(pack.nodes, "LOOK", 0)
    monkeypatch.setenv("LORA_FOUNDRY_SERVER", "http://127.0.0.1:9")
    pack.nodes.follow(pack.nodes.Foundry(), "some-run", "7")
    assert len(told) == 1
    assert "does not answer" in told[0]


def test_a_run_is_followed_to_its_end_and_told_at_the_node(
    pack: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Any] = []
    sending = SimpleNamespace(send_sync=lambda kind, data: told.append((kind, data)))
    socket = SimpleNamespace(PromptServer=SimpleNamespace(instance=sending))
    monkeypatch.setitem(sys.modules, "server", socket)
    monkeypatch.setattr(pack.nodes, "LOOK", 0.01)
    foundry = pack.nodes.Foundry()
    run = foundry.start(pack.nodes.request("Elara", "1girl", "mini", "", "references", ()))["id"]
    looks = iter([None, None])

    def stop() -> None:
        if next(looks, 1):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack.nodes.watch(foundry, run, "7", stop)
    assert pack.nodes.watch(foundry, run, "7")["status"] == "cancelled", "giving up cancels the run"
    assert told[0][0] == "lora_foundry.progress"
    assert told[0][1]["node"] == "7"
    assert "cancelled" in told[-1][1]["text"]


def test_a_node_does_not_wait_for_a_run_that_needs_its_own_queue(pack: Any, settings: Settings) -> None:
    changed = CHARACTER | {"settings": 'generate.backend="comfyui"'}
    with pytest.raises(pack.nodes.FoundryError, match="switch `wait` off"):
        made(pack, "LoraFoundryTrainCharacter").train(**changed, wait=True)
    assert not settings.datasets_dir.exists()


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"name": ""}, "name"),
        ({"recipe": "none"}, "no recipe"),
        ({"settings": "train.rank=x"}, "train.rank"),
    ],
)
def test_what_the_server_refuses_is_said_at_the_node(pack: Any, changed: dict[str, str], words: str) -> None:
    with pytest.raises(pack.nodes.FoundryError, match=words):
        made(pack, "LoraFoundryTrainCharacter").train(**CHARACTER | changed, wait=False)


def test_a_server_that_is_not_there_is_named(pack: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORA_FOUNDRY_SERVER", "http://127.0.0.1:9")
    with pytest.raises(pack.nodes.FoundryError, match=r"does not answer at http://127\.0\.0\.1:9"):
        made(pack, "LoraFoundrySendPictures").send(pictures(1))


def install(settings: Settings, name: str, content: bytes, strength: float = 0.8) -> None:
    """A LoRA of Elara's as publishing leaves it."""
    folder = settings.loras_dir
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.safetensors").write_bytes(content)
    card = {"character": "Elara", "trigger": "elara", "strength": strength,
            "sha256": hashlib.sha256(content).hexdigest()}  # fmt: skip
    (folder / f"{name}.metadata.json").write_text(json.dumps(card))


@pytest.fixture
def comfy(monkeypatch: pytest.MonkeyPatch, settings: Settings) -> list[Any]:
    """ComfyUI's own modules, as far as the loader uses them; what it was asked to load."""
    loaded: list[Any] = []

    def load(model: Any, clip: Any, weights: Any, strength: float, clip_strength: float) -> Any:
        loaded.append((weights, strength, clip_strength))
        return f"{model}+", clip and f"{clip}+"

    folders = SimpleNamespace(
        get_filename_list=lambda kind: [path.name for path in settings.loras_dir.glob("*.safetensors")],
        get_full_path_or_raise=lambda kind, name: str(settings.loras_dir / name),
        get_folder_paths=lambda kind: [str(settings.home / "comfy")],
    )
    modules = {
        "comfy": ModuleType("comfy"),
        "comfy.sd": SimpleNamespace(load_lora_for_models=load),
        "comfy.utils": SimpleNamespace(load_torch_file=lambda path, safe_load: Path(path).read_bytes()),
        "folder_paths": folders,
    }
    modules["comfy"].sd, modules["comfy"].utils = modules["comfy.sd"], modules["comfy.utils"]  # type: ignore[attr-defined]
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    return loaded


def test_the_newest_lora_of_a_character_is_loaded_with_its_trigger_and_strength(
    pack: Any, settings: Settings, comfy: list[Any]
) -> None:
    node = made(pack, "LoraFoundryLoadCharacter")
    with pytest.raises(pack.nodes.FoundryError, match="no LoRA of Elara yet"):
        node.load("m", "Elara", 0.0)
    install(settings, "elara_one", b"old", 0.5)
    before = node.IS_CHANGED(character="elara")
    time.sleep(0.02)
    install(settings, "elara_two", b"new", 0.8)
    assert node.IS_CHANGED(character="elara") != before
    assert node.load("m", "elara", 0.0, "c") == ("m+", "c+", "elara", 0.8)
    assert node.load("m", "", 0.3) == ("m+", None, "elara", 0.3)
    assert comfy == [(b"new", 0.8, 0.8), (b"new", 0.3, 0.0)]


def test_a_lora_that_comfyui_does_not_have_and_no_run_gives_away_is_named(
    pack: Any, settings: Settings, comfy: list[Any]
) -> None:
    install(settings, "elara_one", b"old")
    (settings.loras_dir / "elara_one.safetensors").write_bytes(b"other weights under the same name")
    with pytest.raises(pack.nodes.FoundryError, match="gives away the file of elara_one"):
        made(pack, "LoraFoundryLoadCharacter").load("m", "Elara", 0.0)
    assert not list((settings.home / "comfy").rglob("*.safetensors"))


def test_rest_refuses_a_workflow_that_cannot_work(pack: Any, settings: Settings) -> None:
    """The same words as `create` and `workflows check`, before anything is in the table."""
    folder = settings.home / "workflows"
    folder.mkdir(parents=True)
    graph = {"9": {"class_type": "SaveImage", "inputs": {"filename_prefix": "x", "images": ["1", 0]}}}
    (folder / "mine.json").write_text(json.dumps(graph))
    chosen = f'generate.backend="comfyui"\ngenerate.workflow="{folder / "mine.json"}"'
    with pytest.raises(pack.nodes.FoundryError, match=r"cannot work: \{\{prompt\}\} is bound nowhere"):
        made(pack, "LoraFoundryTrainCharacter").train(**CHARACTER | {"settings": chosen}, wait=False)
    assert pack.nodes.Foundry()._json("GET", "/api/v1/pipelines")["total"] == 0


@pytest.mark.skipif(not (REAL and PACK_PORT), reason="needs a ComfyUI that has the pack")
def test_a_workflow_of_a_real_comfyui_sends_pictures_and_starts_a_run(settings: Settings) -> None:
    colour = time.time_ns() % 0xFFFFFF  # ComfyUI runs no node again whose inputs are those of the last time
    graph = {
        "1": {
            "class_type": "EmptyImage",
            "inputs": {"width": 48, "height": 64, "batch_size": 2, "color": colour},
        },
        "2": {"class_type": "LoraFoundrySendPictures", "inputs": {"images": ["1", 0]}},
        "3": {
            "class_type": "LoraFoundryTrainCharacter",
            "inputs": {**CHARACTER, "settings": "generate.images=4", "wait": False, "pictures": ["2", 0]},
        },
    }
    with (
        served(settings, int(PACK_PORT)),
        httpx.Client(base_url=REAL, trust_env=False, timeout=60) as comfyui,
    ):
        prompt = comfyui.post("/prompt", json={"prompt": graph}).raise_for_status().json()["prompt_id"]
        end = time.monotonic() + 120
        while not (done := comfyui.get(f"/history/{prompt}").json()):
            assert time.monotonic() < end
            time.sleep(0.2)
        assert done[prompt]["status"]["status_str"] == "success", done[prompt]["status"]["messages"]
        assert "Elara: pending, 0%" in done[prompt]["outputs"]["3"]["text"][0]
        with httpx.Client(base_url=f"http://127.0.0.1:{PACK_PORT}", trust_env=False) as ours:
            (run,) = ours.get("/api/v1/pipelines").json()["pipelines"]
    assert run["character"]["name"] == "Elara"
    (sent,) = uploaded(settings)  # the two pictures are equal
    with Image.open(sent) as picture:
        assert picture.size == (48, 64)
