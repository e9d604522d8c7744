"""Workflows as people export them that cannot work, each with what is said of it: by itself, by a server, and before the
first picture by the generator."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lora_foundry.backends.comfyui.ahead import checked
from lora_foundry.backends.comfyui.checks import Asked, check_alone, refuse_faults
from lora_foundry.backends.comfyui.generator import ComfyUIGenerator
from lora_foundry.errors import InputError
from tests.contract.comfyui_exports import (
    Graph,
    added,
    given,
    hires,
    node,
    of_class,
    options,
    read,
    refined,
    saved,
    titled,
)
from tests.contract.comfyui_fixtures import CHECKPOINT, Server, request

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
