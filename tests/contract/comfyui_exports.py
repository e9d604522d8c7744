"""Workflows as people export them, for the tests of what is said of them, what is filled in and what is drawn."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lora_foundry.backends.comfyui.generator import ComfyUIGenerator
from lora_foundry.backends.comfyui.options import ComfyUIOptions
from lora_foundry.backends.comfyui.workflows import parse_workflow
from tests.contract.comfyui_fixtures import CHECKPOINT, Server, request

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


# What cannot work, and the words that say so.
def read(graph: Graph, name: str = "w") -> Any:
    return parse_workflow(json.dumps(graph), name)


def options(server: Server, path: Path, **changes: Any) -> ComfyUIOptions:
    known = {"url": server.url, "checkpoint": CHECKPOINT, "workflow": str(path), "patience": server.patience}
    return ComfyUIOptions(**{**known, **changes})


def saved(folder: Path, data: Any, name: str = "w.json", encoding: str = "utf-8") -> Path:
    path = folder / name
    path.write_text(json.dumps(data), encoding=encoding)
    return path


def draw(server: Server, path: Path, count: int = 2, side: int = 96, **changes: Any) -> list[Any]:
    generator = ComfyUIGenerator(options(server, path, **changes))
    try:
        batches = [[request(number, prompt=f"cat {number}", side=side)] for number in range(count)]
        return [made.image for made in generator.generate(batches)]
    finally:
        generator.close()
