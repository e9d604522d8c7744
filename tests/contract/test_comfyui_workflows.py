"""Workflows: what is bound where, LoRAs put in and taken out, and what a check says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lora_foundry.backends.comfyui.bindings import Values
from lora_foundry.backends.comfyui.checks import check_bindings, check_nodes
from lora_foundry.backends.comfyui.protocol import parse_object_info
from lora_foundry.backends.comfyui.workflows import describe, load_workflow, parse_workflow, shipped
from lora_foundry.errors import InputError
from lora_foundry.testing.comfyui_nodes import node_shapes

VALUES = Values(prompt="a cat", negative="blur", seed=7, width=64, height=96, checkpoint="tiny.safetensors")


def own(**changes: Any) -> str:
    """A user's workflow: bound by titles, without placeholders."""
    graph: dict[str, Any] = {
        "1": {
            "class_type": "CheckpointLoaderSimple",
            "inputs": {"ckpt_name": "x"},
            "_meta": {"title": "Checkpoint"},
        },
        "2": {
            "class_type": "CLIPTextEncode",
            "inputs": {"text": "", "clip": ["1", 1]},
            "_meta": {"title": "Prompt"},
        },
        "3": {"class_type": "CLIPTextEncode", "inputs": {"text": "ugly", "clip": ["1", 1]}},
        "4": {
            "class_type": "KSampler",
            "inputs": {"seed": 0, "steps": 3, "model": ["1", 0], "positive": ["2", 0], "negative": ["3", 0]},
            "_meta": {"title": "SEED"},
        },
        "5": {"class_type": "SaveImage", "inputs": {"images": ["4", 0], "filename_prefix": "mine"}},
    }
    return json.dumps({**graph, **changes})


@pytest.mark.parametrize("name", shipped())
def test_every_shipped_workflow_is_bound_and_filled(name: str) -> None:
    workflow = load_workflow(name)
    assert {"prompt", "seed", "checkpoint"} <= workflow.bindings
    assert not [remark for remark in check_bindings(workflow) if remark.level == "fault"]
    values = Values(**{**VALUES.__dict__, "reference": "ref.png"})
    assert "{{" not in json.dumps(workflow.bind(values))


def test_a_placeholder_alone_keeps_its_type_and_one_inside_a_text_becomes_text() -> None:
    node = {
        "class_type": "CLIPTextEncode",
        "inputs": {"text": "photo of {{ prompt }}, {{width}}", "clip": ["1", 1]},
    }
    graph = parse_workflow(own(**{"2": node}), "w").bind(VALUES)
    assert graph["2"]["inputs"]["text"] == "photo of a cat, 64"
    assert load_workflow("sd15").bind(VALUES)["latent"]["inputs"] == {
        "width": 64,
        "height": 96,
        "batch_size": 1,
    }


def test_titles_bind_what_has_no_placeholder() -> None:
    workflow = parse_workflow(own(), "w")
    graph = workflow.bind(VALUES)
    assert workflow.bindings == {"checkpoint", "prompt", "seed"}
    assert graph["1"]["inputs"]["ckpt_name"] == "tiny.safetensors"
    assert (graph["2"]["inputs"]["text"], graph["3"]["inputs"]["text"]) == ("a cat", "ugly")
    assert (graph["4"]["inputs"]["seed"], graph["4"]["inputs"]["steps"]) == (7, 3)
    assert workflow.bind(VALUES) == graph
    assert "prompt, seed" in describe(workflow)


def test_a_lora_is_put_behind_the_loader_and_everything_reads_it() -> None:
    graph = load_workflow("sd15").bind(
        Values(**{**VALUES.__dict__, "lora": "l.safetensors", "strength": 0.5})
    )
    inputs = graph["lora-model"]["inputs"]
    assert (inputs["model"], inputs["clip"], inputs["strength_clip"]) == (["model", 0], ["model", 1], 0.5)
    assert graph["sampler"]["inputs"]["model"] == ["lora-model", 0]
    assert graph["prompt"]["inputs"]["clip"] == graph["negative"]["inputs"]["clip"] == ["lora-model", 1]
    assert graph["decode"]["inputs"]["vae"] == ["model", 2]


def test_the_workflow_s_own_lora_node_is_bypassed_where_none_is_used() -> None:
    lora = {
        "class_type": "LoraLoader",
        "inputs": {"model": ["1", 0], "clip": ["1", 1], "lora_name": "{{lora}}"},
    }
    nodes = json.loads(own(L=lora))
    nodes["4"]["inputs"]["model"], nodes["2"]["inputs"]["clip"] = ["L", 0], ["L", 1]
    workflow = parse_workflow(json.dumps(nodes), "w")
    plain = workflow.bind(VALUES)
    assert "L" not in plain
    assert (plain["4"]["inputs"]["model"], plain["2"]["inputs"]["clip"]) == (["1", 0], ["1", 1])
    used = workflow.bind(Values(**{**VALUES.__dict__, "lora": "l.safetensors"}))
    assert used["L"]["inputs"]["lora_name"] == "l.safetensors"
    assert len(used) == len(nodes)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "is not JSON"),
        ('{"nodes": [], "links": []}', r"Export \(API\)"),
        ("[]", "API format"),
        ('{"1": {"inputs": {}}}', "API format"),
        (own(**{"5": {"class_type": "X", "inputs": {}}}), "add a Save Image"),
        (own(**{"6": {"class_type": "SaveImage", "inputs": {"filename_prefix": ""}}}), "title the one"),
        (own(**{"6": {"class_type": "X", "inputs": {"a": "{{promt}}"}}}), "did you mean 'prompt'"),
    ],
)
def test_what_is_no_workflow_is_refused_with_what_to_do(text: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        parse_workflow(text, "w")


def test_an_unknown_name_a_missing_file_and_a_missing_value_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="did you mean 'sdxl'"):
        load_workflow("sdxll")
    with pytest.raises(InputError, match="cannot be read"):
        load_workflow(str(tmp_path / "none.json"))
    with pytest.raises(InputError, match="give a reference image"):
        load_workflow("img2img").bind(VALUES)


def test_a_check_finds_what_the_server_would_refuse() -> None:
    shapes = node_shapes()
    shapes["CheckpointLoaderSimple"]["input"]["required"]["ckpt_name"][0] = ["tiny.safetensors"]
    classes = parse_object_info(shapes)
    assert not check_nodes(load_workflow("sd15").graph, classes)
    nodes = json.loads(own())
    nodes["1"] = {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "tinny.safetensors"}}
    nodes["2"]["inputs"]["clip"] = ["1", 5]
    nodes["3"]["inputs"]["clip"] = ["9", 0]
    nodes["5"]["inputs"]["images"] = ["1", 0]
    nodes["7"] = {"class_type": "KSampleer", "inputs": {}}
    found = " ".join(
        remark.text for remark in check_nodes(parse_workflow(json.dumps(nodes), "w").graph, classes)
    )
    for words in (
        "did you mean tiny.safetensors",
        "output 5 of node 1",
        "node 9, which does not exist",
        "takes IMAGE, but node 1 gives MODEL",
        "did you mean KSampler",
        "the input 'latent_image' is missing",
    ):
        assert words in found
