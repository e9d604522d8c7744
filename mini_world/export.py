"""From training's checkpoints to the folder that ships: a diffusers Stable Diffusion in half precision
with the two instruments beside it. Everything is written aside and put in place by one rename, since
others may be reading.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, StableDiffusionPipeline
from safetensors.torch import load_file, save_file
from transformers import CLIPTokenizer

from lora_foundry.mini import MODEL_DIR
from mini_world.data import IMAGE_SIZE
from mini_world.train_diffusion import NOISE_SCHEDULE, build_unet
from mini_world.train_text import build as build_text
from mini_world.train_tokenizer import save as save_tokenizer
from mini_world.vocabulary import QUALITY_TAGS, SHOT, TRAITS, tag

INSTRUMENTS = ("reader", "encoder")


def world() -> dict:
    """The vocabulary as the runtime reads it: every value as the words that captions use."""
    identity, shot = (
        {name: [tag(name, value) for value in values] for name, values in part.items()}
        for part in (TRAITS, SHOT)
    )
    return {"image_size": IMAGE_SIZE, "quality_tags": list(QUALITY_TAGS), "identity": identity, "shot": shot}


def write_pipeline(work: Path, run: str, folder: Path) -> dict:
    """The averaged weights as a diffusers folder; returns how far training had come."""
    state = torch.load(work / run / "checkpoint.pt")
    unet = build_unet(tuple(state.get("widths", (48, 160))))
    tokenizer = CLIPTokenizer.from_pretrained(work / "tokenizer")
    text = build_text(tokenizer)
    for module, values in zip((unet, text), state["averages"], strict=True):
        module.load_state_dict(values)
    polished = work / "decoder" / "final"
    vae = AutoencoderKL.from_pretrained(polished if polished.exists() else work / "vae" / "final")
    vae.register_to_config(_name_or_path="")  # where it lay here is nobody's business
    scheduler = DPMSolverMultistepScheduler(**NOISE_SCHEDULE, steps_offset=1)
    scheduler.register_to_config(clip_sample=False)  # read by samplers made from this configuration
    pipeline = StableDiffusionPipeline(
        vae=vae.half(),
        text_encoder=text.half(),
        tokenizer=tokenizer,
        unet=unet.half(),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder, safe_serialization=True)
    (folder / "vae" / "result.json").unlink(missing_ok=True)
    save_tokenizer(tokenizer, folder / "tokenizer")
    prefix_text_weights(folder / "text_encoder" / "model.safetensors")
    return {"steps": state["step"], "samples": state["samples"]}


def prefix_text_weights(file: Path) -> None:
    """Give the text encoder's weights the names under which every published Stable Diffusion stores them."""
    weights = {
        name if name.startswith("text_model.") else f"text_model.{name}": value
        for name, value in load_file(file).items()
    }
    save_file(weights, file, metadata={"format": "pt"})


def hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of weights."""
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*.safetensors"))
    }


def put_in_place(aside: Path, target: Path) -> None:
    """Swap folders by renaming; the old one is gone only when the new one stands."""
    old = target.with_name(f".{target.name}.old{os.getpid()}")
    if target.exists():
        target.rename(old)
    aside.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the model that ships.")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--run", default="diffusion")
    parser.add_argument("--target", type=Path, default=MODEL_DIR)
    parser.add_argument(
        "--instruments-only", action="store_true", help="only renew the reader and the encoder"
    )
    options = parser.parse_args()
    aside = options.target.with_name(f".{options.target.name}.new{os.getpid()}")
    if options.instruments_only:
        shutil.copytree(options.target, aside)
        progress: dict = {}
    else:
        progress = write_pipeline(options.work, options.run, aside)
    for name in INSTRUMENTS:
        made = options.work / name / "final"
        if made.exists():
            shutil.rmtree(aside / name, ignore_errors=True)
            shutil.copytree(made, aside / name)
    put_in_place(aside, options.target)
    (options.target.parent / "world.json").write_text(json.dumps(world(), indent=1) + "\n")
    size = sum(file.stat().st_size for file in options.target.rglob("*") if file.is_file())
    print(json.dumps({**progress, "bytes": size, "sha256": hashes(options.target)}, indent=1))


if __name__ == "__main__":
    main()
