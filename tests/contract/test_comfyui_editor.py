"""Workflows as ComfyUI's editor saves them, converted by the node list of the server, and drawn with."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lora_foundry.backends.comfyui.ahead import checked
from lora_foundry.backends.comfyui.options import ComfyUIOptions
from lora_foundry.backends.comfyui.protocol import parse_object_info
from lora_foundry.backends.comfyui.workflows import parse_workflow
from lora_foundry.errors import BackendError, InputError
from lora_foundry.testing.comfyui_nodes import node_shapes
from tests.contract.comfyui_exports import draw, saved
from tests.contract.comfyui_fixtures import CHECKPOINT, Server


def in_the_editor() -> dict[str, Any]:
    """A workflow as the editor saves it: values without names, a note, a reroute, a bypassed LoRA, a subgraph."""

    def of(
        number: Any,
        kind: str,
        values: list[Any],
        ins: list[tuple[str, int | None]],
        outs: int = 1,
        **more: Any,
    ) -> Any:
        inputs = [{"name": name, "type": name.upper(), "link": link} for name, link in ins]
        outputs = [{"name": "out", "type": more.pop(f"out{slot}", "*"), "links": [1]} for slot in range(outs)]
        return {
            "id": number,
            "type": kind,
            "inputs": inputs,
            "outputs": outputs,
            "widgets_values": values,
            **more,
        }

    sub = {
        "id": "aaaa", "name": "texts",
        "inputs": [{"name": "clip", "linkIds": [1]}, {"name": "text", "linkIds": [2]}],
        "outputs": [{"name": "CONDITIONING", "linkIds": [3]}],
        "nodes": [{
            "id": 1, "type": "CLIPTextEncode", "title": "inner", "widgets_values": ["old"],
            "inputs": [{"name": "clip", "link": 1}, {"name": "text", "widget": {"name": "text"}, "link": 2}],
            "outputs": [{"name": "CONDITIONING", "links": [3]}],
        }],
        "links": [
            {"id": 1, "origin_id": -10, "origin_slot": 0, "target_id": 1, "target_slot": 0, "type": "CLIP"},
            {"id": 2, "origin_id": -10, "origin_slot": 1, "target_id": 1, "target_slot": 1, "type": "STRING"},
            {"id": 3, "origin_id": 1, "origin_slot": 0, "target_id": -20, "target_slot": 0, "type": "CONDITIONING"},
        ],
    }  # fmt: skip
    texts = {
        "id": 6, "type": "aaaa", "widgets_values": ["{{prompt}}"],
        "inputs": [{"name": "clip", "link": 2}, {"name": "text", "widget": {"name": "text"}, "link": None}],
        "outputs": [{"name": "CONDITIONING", "links": [4]}],
    }  # fmt: skip
    nodes = [
        of(4, "CheckpointLoaderSimple", [CHECKPOINT], [], 3),
        of(10, "LoraLoader", ["gone.safetensors", 1.0, 1.0], [("model", 1), ("clip", 11)], 2, mode=4,
           out0="MODEL", out1="CLIP"),
        texts,
        of(7, "CLIPTextEncode", ["bad"], [("clip", 3)]),
        of(5, "EmptyLatentImage", [64, 64, 1], [], title="size"),
        of(20, "Reroute", [], [("", 5)]),
        of(3, "KSampler", [5, "randomize", 2, 7.0, "euler", "normal", 1.0],
           [("model", 6), ("positive", 4), ("negative", 7), ("latent_image", 8)], title="seed, steps"),
        of(8, "VAEDecode", [], [("samples", 9), ("vae", 10)]),
        of(9, "SaveImage", ["mine"], [("images", 12)], 0),
        of(30, "Note", ["what I wanted to say"], [], 0),
        of(31, "PreviewImage", [], [("images", 12)], 0, mode=2),
        of(32, "Somebody's label", ["hello"], [], 0),
    ]  # fmt: skip
    links = [
        [1, 4, 0, 10, 0, "MODEL"], [11, 4, 1, 10, 1, "CLIP"], [2, 10, 1, 6, 0, "CLIP"], [3, 10, 1, 7, 0, "CLIP"],
        [4, 6, 0, 3, 1, "CONDITIONING"], [5, 5, 0, 20, 0, "LATENT"], [6, 10, 0, 3, 0, "MODEL"],
        [7, 7, 0, 3, 2, "CONDITIONING"], [8, 20, 0, 3, 3, "LATENT"], [9, 3, 0, 8, 0, "LATENT"],
        [10, 4, 2, 8, 1, "VAE"], [12, 8, 0, 9, 0, "IMAGE"],
    ]  # fmt: skip
    return {"nodes": nodes, "links": links, "definitions": {"subgraphs": [sub]}, "version": 0.4}


def test_the_editor_s_format_is_converted_by_the_node_list_of_the_server() -> None:
    classes = parse_object_info(node_shapes())
    workflow = parse_workflow(json.dumps(in_the_editor()), "w", lambda: classes)
    assert sorted(workflow.graph) == ["3", "4", "5", "6:1", "7", "8", "9"]
    assert workflow.graph["3"]["inputs"] == {
        "seed": 5, "steps": 2, "cfg": 7.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0,
        "model": ["4", 0], "positive": ["6:1", 0], "negative": ["7", 0], "latent_image": ["5", 0],
    }  # fmt: skip
    assert workflow.graph["6:1"]["inputs"] == {"text": "{{prompt}}", "clip": ["4", 1]}
    assert workflow.bindings == {"prompt", "seed", "steps", "width", "height"}


def test_the_editor_s_format_is_drawn_with(server: Server, tmp_path: Path) -> None:
    one, other = draw(server, saved(tmp_path, in_the_editor()), side=64)
    assert one.tobytes() != other.tobytes()


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data["links"].clear(),
        lambda data: data["nodes"][0].pop("type"),
        lambda data: data["nodes"].append({"id": 6}),
        lambda data: data.update(nodes=[1]),
        lambda data: data["definitions"]["subgraphs"][0].pop("links"),
        lambda data: data["definitions"]["subgraphs"][0]["nodes"].append({"id": 2, "type": "aaaa"}),
    ],
)
def test_a_damaged_file_of_the_editor_is_one_sentence(damage: Callable[[Any], None]) -> None:
    data = in_the_editor()
    damage(data)
    classes = parse_object_info(node_shapes())
    with pytest.raises(InputError, match=r"Export \(API\)|no picture"):
        parse_workflow(json.dumps(data), "w", lambda: classes)


def test_the_editor_s_format_without_a_server_says_how_to_export(tmp_path: Path) -> None:
    path = saved(tmp_path, in_the_editor())
    nobody = ComfyUIOptions("http://127.0.0.1:9", CHECKPOINT, workflow=str(path))
    with pytest.raises(BackendError, match="does not answer"):
        checked(str(path), nobody, None)
    with pytest.raises(InputError, match=r"Export \(API\)"):
        checked(str(path), nobody, None, must_answer=False)
