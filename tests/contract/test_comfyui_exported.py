"""Workflows as people export them, each with what is said of it: by itself, by a server, and before the first picture by
the generator. A workflow that works is drawn with."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lora_foundry.backends.comfyui.ahead import checked
from lora_foundry.backends.comfyui.bindings import Values
from lora_foundry.backends.comfyui.checks import Asked, check_alone, refuse_faults
from lora_foundry.backends.comfyui.generator import ComfyUIGenerator
from lora_foundry.backends.comfyui.graphs import picture_of
from lora_foundry.backends.comfyui.options import ComfyUIOptions
from lora_foundry.backends.comfyui.protocol import parse_object_info
from lora_foundry.backends.comfyui.workflows import load_workflow, lora_places, parse_workflow
from lora_foundry.errors import BackendError, InputError
from lora_foundry.testing.comfyui_nodes import node_shapes
from lora_foundry.testing.comfyui_stub import StubServer
from tests.contract.comfyui_fixtures import CHECKPOINT, PATIENT, QUICK, REAL, Server, request

Graph = dict[str, dict[str, Any]]
Change = Callable[[Graph], None]


def node(class_type: str, title: str = "", **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs, "_meta": {"title": title or class_type}}


def hires(*changes: Change) -> Graph:
    """Two passes with an enlargement between them, a preview of the first, and titles that bind it all."""
    sampler = {
        "steps": 2, "cfg": 7.0, "sampler_name": "euler", "scheduler": "normal", "positive": ["6", 0],
        "negative": ["7", 0], "model": ["4", 0], "end_at_step": 100, "return_with_leftover_noise": "disable",
        "add_noise": "enable",
    }  # fmt: skip
    graph = {
        "4": node("CheckpointLoaderSimple", "Load Checkpoint", ckpt_name=CHECKPOINT),
        "6": node("CLIPTextEncode", "Prompt", text="a cat", clip=["4", 1]),
        "7": node("CLIPTextEncode", "negative", text="bad", clip=["4", 1]),
        "5": node("EmptyLatentImage", "Empty Latent Image", width=64, height=64, batch_size=1),
        "3": node(
            "KSamplerAdvanced", "seed", noise_seed=5, start_at_step=0, latent_image=["5", 0], **sampler
        ),
        "11": node("LatentUpscaleBy", samples=["3", 0], upscale_method="nearest-exact", scale_by=1.5),
        "12": node(
            "KSamplerAdvanced", "SEED", noise_seed=6, start_at_step=1, latent_image=["11", 0], **sampler
        ),
        "8": node("VAEDecode", samples=["12", 0], vae=["4", 2]),
        "13": node("VAEDecode", samples=["3", 0], vae=["4", 2]),
        "14": node("PreviewImage", images=["13", 0]),
        "9": node("SaveImage", images=["8", 0], filename_prefix="ComfyUI"),
    }
    for change in changes:
        change(graph)
    return graph


def titled(key: str, title: str) -> Change:
    return lambda graph: graph[key]["_meta"].update(title=title)


def given(key: str, **inputs: Any) -> Change:
    return lambda graph: graph[key]["inputs"].update(inputs)


def added(**nodes: dict[str, Any]) -> Change:
    return lambda graph: graph.update(copy.deepcopy(nodes))


def of_class(key: str, class_type: str) -> Change:
    return lambda graph: graph[key].update(class_type=class_type)


def refined(graph: Graph) -> None:
    """A second model finishes the picture of the first."""
    graph["40"] = node("CheckpointLoaderSimple", "Load refiner", ckpt_name="refiner.safetensors")
    graph["41"] = node("CLIPTextEncode", "x", text="{{prompt}}", clip=["40", 1])
    graph["12"]["inputs"].update(model=["40", 0], positive=["41", 0], negative=["41", 0])


SIZE_96 = Asked(96, 96, CHECKPOINT)
# What cannot work, and the words that say so.
REFUSED: dict[str, tuple[Graph, Asked, str]] = {
    "no prompt": (
        hires(titled("6", "")),
        SIZE_96,
        r"\{\{prompt\}\} is bound nowhere: every picture would show the same; .*'CLIPTextEncode' \(node 6\)",
    ),
    "no seed": (
        hires(titled("3", ""), titled("12", "")),
        SIZE_96,
        r"\{\{seed\}\} is bound nowhere: every picture would be the same; .*\(node 3\) or .*\(node 12\)",
    ),
    "a prompt beside the picture": (
        hires(titled("6", ""), added(p=node("CLIPTextEncode", "prompt", text="", clip=["4", 1]))),
        SIZE_96,
        "bound only in nodes that do not lead to the picture: every picture would show the same",
    ),
    "a seed beside the picture": (
        hires(titled("3", ""), titled("12", ""), added(n=node("RandomNoise", "seed", noise_seed=1))),
        SIZE_96,
        "bound only in nodes that do not lead to the picture: every picture would be the same",
    ),
    "a seed where no noise is added": (
        hires(titled("3", ""), given("12", add_noise="disable")),
        SIZE_96,
        "bound only where no noise is added",
    ),
    "two models": (
        hires(refined),
        Asked(96, 96, "a third.safetensors"),
        r"draws with 2 models, 'Load Checkpoint' \(node 4\) and 'Load refiner' \(node 40\)",
    ),
    "no model that can be reached": (
        hires(given("3", model="none"), given("12", model="none")),
        SIZE_96,
        "no place for a LoRA",
    ),
    "a LoRA beside the picture": (
        hires(added(l=node("LoraLoaderModelOnly", model=["4", 0], lora_name="{{lora}}", strength_model=1.0))),
        SIZE_96,
        r"\{\{lora\}\} is bound only in a node that does not lead to the picture",
    ),
    "smaller than asked": (
        hires(),
        Asked(512, 512, CHECKPOINT),
        r"makes pictures of 96x96 where the recipe asks for 512x512; bind \{\{width\}\} and \{\{height\}\} .* "
        "generate.width=96",
    ),
    "of another shape": (
        hires(given("5", width=64, height=96)),
        Asked(64, 64, CHECKPOINT),
        "makes pictures of 96x144 where the recipe asks for 64x64",
    ),
    "four pictures of one prompt": (hires(given("5", batch_size=4)), SIZE_96, "makes 4 pictures of one prompt"),
}  # fmt: skip
# What is no workflow that can be understood: refused when it is read.
UNREADABLE: dict[str, tuple[Any, str]] = {
    "two that save": (
        hires(added(s=node("SaveImage", images=["13", 0], filename_prefix="first"))),
        r"2 nodes that save, 'SaveImage' \(node 9\) and 'SaveImage' \(node s\); title the one that counts 'output'",
    ),
    "nothing saved": (hires(lambda graph: graph.pop("9")), "add a Save Image"),
    "an unknown word": (hires(given("6", text="{{promt}}")), "did you mean 'prompt'"),
    "the editor's format": ({"nodes": [], "links": [], "version": 0.4}, r"Export \(API\)"),
}
# What only a server can say.
ON_A_SERVER: dict[str, tuple[Graph, str]] = {
    "a slip": (hires(of_class("3", "KSamplerAdvancd")), "no KSamplerAdvancd; did you mean KSamplerAdvanced"),
    "custom nodes": (hires(of_class("11", "UltimateSDUpscale")), "no UltimateSDUpscale; install the custom node"),
    "a LoRA of the user's own": (
        hires(
            added(l=node("LoraLoader", "My style", model=["4", 0], clip=["4", 1], lora_name="mine.safetensors",
                         strength_model=1.0, strength_clip=1.0)),
            given("3", model=["l", 0]),
        ),
        "lora_name 'mine.safetensors' is not there",
    ),
}  # fmt: skip


def read(graph: Graph, name: str = "w") -> Any:
    return parse_workflow(json.dumps(graph), name)


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_work_is_refused_by_itself(kind: str) -> None:
    graph, asked, words = REFUSED[kind]
    with pytest.raises(InputError, match=words):
        refuse_faults(read(graph), check_alone(read(graph), asked))


@pytest.mark.parametrize("kind", UNREADABLE)
def test_what_cannot_be_understood_is_refused_when_it_is_read(kind: str) -> None:
    graph, words = UNREADABLE[kind]
    with pytest.raises(InputError, match=words):
        read(graph)


@pytest.fixture
def server() -> Iterator[Server]:
    if REAL:
        yield Server(REAL, None, None, PATIENT)
        return
    with StubServer((CHECKPOINT,)) as stub:
        yield Server(stub.url, stub, None, QUICK)


def options(server: Server, path: Path, **changes: Any) -> ComfyUIOptions:
    known = {"url": server.url, "checkpoint": CHECKPOINT, "workflow": str(path), "patience": server.patience}
    return ComfyUIOptions(**{**known, **changes})


def saved(folder: Path, data: Any, name: str = "w.json", encoding: str = "utf-8") -> Path:
    path = folder / name
    path.write_text(json.dumps(data), encoding=encoding)
    return path


@pytest.mark.parametrize("kind", [*REFUSED, *ON_A_SERVER])
def test_the_generator_refuses_it_before_the_first_picture(kind: str, server: Server, tmp_path: Path) -> None:
    graph, asked, words = (
        REFUSED[kind] if kind in REFUSED else (ON_A_SERVER[kind][0], SIZE_96, ON_A_SERVER[kind][1])
    )
    path = saved(tmp_path, graph)
    generator = ComfyUIGenerator(options(server, path, checkpoint=asked.checkpoint, lends=True))
    with pytest.raises(InputError, match=words):
        next(generator.generate([[request(1, side=asked.width)]]))
    generator.close()
    if server.stub is not None:
        assert "POST /prompt" not in server.stub.requests


@pytest.mark.parametrize("kind", [*REFUSED, *ON_A_SERVER])
def test_the_check_says_the_same(kind: str, server: Server, tmp_path: Path) -> None:
    graph, asked, words = (
        REFUSED[kind] if kind in REFUSED else (ON_A_SERVER[kind][0], SIZE_96, ON_A_SERVER[kind][1])
    )
    workflow, remarks = checked(str(saved(tmp_path, graph)), options(server, tmp_path), asked)
    with pytest.raises(InputError, match=words):
        refuse_faults(workflow, remarks)


def draw(server: Server, path: Path, count: int = 2, side: int = 96, **changes: Any) -> list[Any]:
    generator = ComfyUIGenerator(options(server, path, **changes))
    try:
        batches = [[request(number, prompt=f"cat {number}", side=side)] for number in range(count)]
        return [made.image for made in generator.generate(batches)]
    finally:
        generator.close()


def custom_sampler(graph: Graph) -> None:
    """The newer samplers in parts, where noise, guidance and steps are nodes of their own."""
    for key in ("11", "12", "13", "14"):
        del graph[key]
    graph["20"] = node("RandomNoise", "seed", noise_seed=1)
    graph["21"] = node("KSamplerSelect", sampler_name="euler")
    graph["22"] = node("BasicScheduler", model=["4", 0], scheduler="normal", steps="{{steps}}", denoise=1.0)
    graph["23"] = node("CFGGuider", model=["4", 0], positive=["6", 0], negative=["7", 0], cfg=7.0)
    graph["3"] = node("SamplerCustomAdvanced", noise=["20", 0], guider=["23", 0], sampler=["21", 0],
                      sigmas=["22", 0], latent_image=["5", 0])  # fmt: skip
    graph["5"] = node("EmptyLatentImage", "size", width=512, height=512, batch_size="{{batch}}")
    graph["8"]["inputs"]["samples"] = ["3", 0]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_file_of_any_encoding_is_read(encoding: str, tmp_path: Path) -> None:
    assert load_workflow(str(saved(tmp_path, hires(), encoding=encoding))).output == "9"


def test_a_workflow_that_enlarges_is_kept_at_the_recipe_s_size(server: Server, tmp_path: Path) -> None:
    path = saved(tmp_path, hires())
    for side in (96, 64):
        one, other = draw(server, path, side=side)
        assert one.size == (side, side)
        assert one.tobytes() != other.tobytes()
    remarks = check_alone(load_workflow(str(path)), Asked(64, 64, CHECKPOINT))
    assert any("96x96, which are scaled down to the recipe's 64x64" in remark.text for remark in remarks)


def test_samplers_in_parts_are_drawn_with(server: Server, tmp_path: Path) -> None:
    one, other = draw(server, saved(tmp_path, hires(custom_sampler)), side=64)
    assert one.size == (64, 64)
    assert one.tobytes() != other.tobytes()


def test_the_two_texts_of_sdxl_are_bound_by_one_title() -> None:
    sdxl = node("CLIPTextEncodeSDXL", "Prompt", text_g="", text_l="", clip=["4", 1], width=64, height=64)
    bound = read(hires(added(**{"6": sdxl}))).bind(Values(prompt="a cat", seed=1))
    assert (bound["6"]["inputs"]["text_g"], bound["6"]["inputs"]["text_l"]) == ("a cat", "a cat")


@pytest.mark.parametrize(
    ("title", "filled"),
    [
        ("size", {"width": 128, "height": 192}),
        ("width, height & batch", {"width": 128, "height": 192, "batch_size": 3}),
        ("Width Height", {"width": 128, "height": 192}),
        ("height", {"height": 192, "width": 64}),
        ("the size of it", {"width": 64, "height": 64}),
    ],
)
def test_one_title_may_bind_several_inputs(title: str, filled: dict[str, int]) -> None:
    workflow = read(hires(titled("5", title)))
    bound = workflow.bind(Values(prompt="", seed=1, width=128, height=192, batch=3))["5"]["inputs"]
    assert filled.items() <= bound.items()


def test_a_title_reaches_the_value_that_comes_over_a_link() -> None:
    text = node("PrimitiveStringMultiline", value="a dog")
    number = node("PrimitiveInt", value=3)
    graph = hires(added(t=text, n=number), given("6", text=["t", 0]), given("3", noise_seed=["n", 0]))
    bound = read(graph).bind(Values(prompt="a cat", seed=7))
    assert (bound["t"]["inputs"]["value"], bound["n"]["inputs"]["value"]) == ("a cat", 7)


def test_the_lora_goes_behind_the_model_that_it_is_for() -> None:
    values = Values(prompt="", seed=1, lora="l.safetensors")
    assert [place.node for place in lora_places(read(hires()))] == ["4"]
    named = read(hires(refined)).bind(values, "models/" + CHECKPOINT)
    assert named["lora-4"]["inputs"]["model"] == ["4", 0]
    assert named["3"]["inputs"]["model"] == ["lora-4", 0]
    assert named["12"]["inputs"]["model"] == ["40", 0]
    bound = read(hires(refined, given("40", ckpt_name="{{checkpoint}}")))
    assert [place.node for place in lora_places(bound)] == ["40"]
    unused = hires(
        added(u=node("CheckpointLoaderSimple", ckpt_name="other"), k=node("KSampler", model=["u", 0]))
    )
    assert [place.node for place in lora_places(read(unused))] == ["4"]
    twice = hires(refined, given("40", ckpt_name=CHECKPOINT))
    assert [place.node for place in lora_places(read(twice))] == ["4", "40"]


def test_a_lora_goes_behind_a_loader_of_any_kind_with_its_text_encoder() -> None:
    values = Values(prompt="", seed=1, lora="l.safetensors", strength=0.5)
    own = read(hires(of_class("4", "SomebodysLoader"))).bind(values)["lora-4"]
    assert (own["class_type"], own["inputs"]["clip"]) == ("LoraLoader", ["4", 1])
    split = hires(
        added(u=node("UNETLoader", unet_name="x"), c=node("CLIPLoader", clip_name="y")),
        *(given(key, model=["u", 0]) for key in ("3", "12")),
        *(given(key, clip=["c", 0]) for key in ("6", "7")),
    )
    made = read(split).bind(values)
    assert made["lora-u"]["inputs"]["clip"] == ["c", 0]
    assert made["6"]["inputs"]["clip"] == ["lora-u", 1]
    two_clips = copy.deepcopy(split) | {"d": node("CLIPLoader", clip_name="z")}
    two_clips["7"]["inputs"]["clip"] = ["d", 0]
    assert read(two_clips).bind(values)["lora-u"]["class_type"] == "LoraLoaderModelOnly"


def test_the_size_is_told_from_the_graph_or_not_at_all() -> None:
    assert picture_of(hires(), "9") == (96, 96, 1)
    assert picture_of(hires(given("5", width=70, batch_size=2), given("11", scale_by=2.0)), "9") == (
        128,
        128,
        2,
    )
    assert picture_of(hires(of_class("11", "SomebodysUpscaler")), "9") is None
    scaled = hires(
        added(i=node("ImageScale", image=["8", 0], width=200, height=104)), given("9", images=["i", 0])
    )
    assert picture_of(scaled, "9") == (200, 104, 1)


# The editor's format


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
