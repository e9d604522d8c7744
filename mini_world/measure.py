"""How well the exported model obeys: random full prompts, pictures by the plain diffusers pipeline,
attributes read by the reader, a table of the share that is right. Beside it stands what the reader says
of clean pictures and of reconstructions, because no picture can be read better than those.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from lora_foundry.mini import MODEL_DIR
from lora_foundry.mini.instruments import AttributeReader
from mini_world.captions import full_caption
from mini_world.data import picture_seed
from mini_world.export import hashes
from mini_world.scene import Scene, attributes, sample_scene
from mini_world.vocabulary import ATTRIBUTES

SETTINGS = {
    "num_inference_steps": 16,
    "guidance_scale": 4.0,
    "guidance_rescale": 0.5,
    "height": 64,
    "width": 64,
}
BATCH = 16
SHOWN = 64


def scenes(seed: int, count: int) -> list[Scene]:
    """Scenes of nobody in particular."""
    rng = np.random.default_rng(seed)
    found: list[Scene] = []
    while len(found) < count:
        scene = sample_scene(rng)
        if scene.name is None:
            found.append(scene)
    return found


def generate(folder: Path, prompts: list[str], seed: int) -> list[Image.Image]:
    """One picture a prompt, each from its own seed."""
    pipeline = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    pictures: list[Image.Image] = []
    for start in range(0, len(prompts), BATCH):
        part = prompts[start : start + BATCH]
        generators = [torch.Generator().manual_seed(seed + start + place) for place in range(len(part))]
        pictures += pipeline(part, generator=generators, **SETTINGS).images
    return pictures


def obedience(reader: AttributeReader, pictures: list[Image.Image], shown: list[Scene]) -> dict[str, float]:
    """Share of right readings of each attribute that the scene shows, and their mean."""
    readings = reader.read(pictures)
    right: dict[str, list[bool]] = {name: [] for name in ATTRIBUTES}
    for reading, scene in zip(readings, shown, strict=True):
        for name, index in attributes(scene).items():
            if index >= 0:
                right[name].append(reading[name].index == index)
    table = {name: round(float(np.mean(answers)), 3) for name, answers in right.items()}
    table["mean"] = round(float(np.mean(list(table.values()))), 4)
    return table


@torch.inference_mode()
def drawn_and_restored(folder: Path, shown: list[Scene]) -> tuple[list[Image.Image], list[Image.Image]]:
    """The scenes as the renderer draws them, and the same through the autoencoder."""
    from diffusers import AutoencoderKL

    from mini_world.render import render
    from mini_world.train_reader import restored_images

    images = np.stack([render(scene, picture_seed(99, place)) for place, scene in enumerate(shown)])
    vae = AutoencoderKL.from_pretrained(folder / "vae", dtype=torch.float32)
    again = restored_images(vae, images, np.random.default_rng(0), 0.0)
    return [Image.fromarray(image) for image in images], [Image.fromarray(image) for image in again]


def sheet(pictures: list[Image.Image], columns: int = 16, scale: int = 1) -> Image.Image:
    """A contact sheet."""
    rows = -(-len(pictures) // columns)
    whole = Image.new("RGB", (columns * 64, rows * 64))
    for place, picture in enumerate(pictures):
        whole.paste(picture, (place % columns * 64, place // columns * 64))
    return whole.resize((whole.width * scale, whole.height * scale), Image.Resampling.NEAREST)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure how well the exported model obeys.")
    parser.add_argument("--model", type=Path, default=MODEL_DIR)
    parser.add_argument("--count", type=int, default=128)
    parser.add_argument("--seed", type=int, default=2024)
    parser.add_argument("--out", type=Path, required=True, help="the table; a contact sheet is put beside it")
    options = parser.parse_args()
    shown = scenes(options.seed, options.count)
    prompts = [full_caption(scene) for scene in shown]
    begun = time.time()
    pictures = generate(options.model, prompts, options.seed)
    seconds = time.time() - begun
    reader = AttributeReader.load()
    drawn, restored = drawn_and_restored(options.model, shown)
    result = {
        "prompts": options.count,
        "seed": options.seed,
        "settings": {"sampler": "DPM++ 2M", **SETTINGS},
        "obedience": obedience(reader, pictures, shown),
        "restored": obedience(reader, restored, shown),
        "drawn": obedience(reader, drawn, shown),
        "sha256": hashes(options.model),
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    sheet(pictures[:SHOWN]).save(options.out.with_suffix(".png"))
    print(json.dumps({name: result[name] for name in ("obedience", "restored", "drawn")}, indent=1))
    print(f"{seconds / options.count:.2f} s a picture")


if __name__ == "__main__":
    main()
