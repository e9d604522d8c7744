"""Workflows as people export them that work: what is filled into them and where, and that they are drawn with."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest

from lora_foundry.backends.comfyui.bindings import Values
from lora_foundry.backends.comfyui.checks import Asked, check_alone
from lora_foundry.backends.comfyui.graphs import picture_of
from lora_foundry.backends.comfyui.workflows import load_workflow, lora_places
from tests.contract.comfyui_exports import (
    Graph,
    added,
    draw,
    given,
    hires,
    node,
    of_class,
    read,
    refined,
    saved,
    titled,
)
from tests.contract.comfyui_fixtures import CHECKPOINT, Server


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
