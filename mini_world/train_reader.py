"""The attribute reader: fourteen small classifiers on one trunk. It is trained on clean pictures and on
pictures harmed the way generated ones are (blurred, noisy, through the autoencoder with noise on the
latents), because its work is to judge what the diffusion model draws. With `--second` another reader is
trained, from the encoder's trunk and on the encoder's pictures: where the first one judges, what reads
traits on the way must be another eye.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from lora_foundry.families._shared.devices import cpu_has_bf16
from lora_foundry.mini import MODEL_DIR
from lora_foundry.mini.networks import AttributeNetwork
from mini_world.data import (
    ATTRIBUTE_NAMES,
    Shard,
    group_scenes,
    labels_of,
    open_shard,
    shard_folders,
    to_tensor,
)
from mini_world.optimizer import Average, Both, save_whole
from mini_world.vocabulary import ATTRIBUTES, tag

WIDTHS = (24, 40, 80, 120)


def config() -> dict:
    """What the runtime needs to rebuild the network and to name its answers."""
    values = {name: [tag(name, value) for value in known] for name, known in ATTRIBUTES.items()}
    return {"image_size": 64, "widths": list(WIDTHS), "attributes": values}


def blurred(x: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """A small Gaussian blur of random width."""
    sigma = float(rng.uniform(0.3, 0.9))
    taps = torch.exp(-torch.arange(-2, 3).float().square() / (2 * sigma * sigma))
    kernel = (taps / taps.sum())[None, None]
    wide = nn.functional.pad(x.flatten(0, 1)[:, None], (2, 2, 2, 2), mode="replicate")
    wide = nn.functional.conv2d(nn.functional.conv2d(wide, kernel[:, :, None]), kernel[:, :, :, None])
    return wide.reshape(x.shape)


def shifted(x: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Moved by up to two pixels either way."""
    down, across = (int(v) for v in rng.integers(0, 5, size=2))
    return nn.functional.pad(x, (2, 2, 2, 2), mode="replicate")[..., down : down + 64, across : across + 64]


def harmed(x: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """A batch in one of the ways in which pictures suffer, often in none."""
    if rng.random() < 0.5:
        x = shifted(x, rng)
    if rng.random() < 0.3:
        x = blurred(x, rng)
    if rng.random() < 0.4:
        x = x + float(rng.uniform(0.02, 0.15)) * torch.randn_like(x)
    if rng.random() < 0.3:
        x = x * float(rng.uniform(0.9, 1.1)) + float(rng.uniform(-0.06, 0.06))
    return x.clamp(-1, 1)


@torch.inference_mode()
def restored_images(vae: nn.Module, images: np.ndarray, rng: np.random.Generator, noise: float) -> np.ndarray:
    """Pictures through the autoencoder, with up to `noise` spreads of noise on the latents."""
    out = []
    for start in range(0, len(images), 50):
        z = vae.encode(to_tensor(images[start : start + 50])).latent_dist.mean
        strength = torch.from_numpy(rng.uniform(0, noise, size=(len(z), 1, 1, 1))).float()
        y = vae.decode(z + strength * torch.randn_like(z) * z.std()).sample.clamp(-1, 1)
        out.append(((y + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy())
    return np.concatenate(out)


def group_shards(work: Path) -> list[Shard]:
    """The encoder's groups as shards, but for the first hundred, with all that each picture shows."""
    shards = []
    for file in sorted((work / "groups").glob("groups-?????.npy"))[1:]:
        images, first = np.load(file, mmap_mode="r"), int(file.stem[-5:])
        scenes = [
            scene for place in range(len(images)) for row in group_scenes(31, first + place) for scene in row
        ]
        labels = np.array([labels_of(scene) for scene in scenes], np.int8)
        flat = images.reshape(-1, *images.shape[-3:])
        shards.append(Shard(flat, np.ones(flat.shape[:3], np.uint8), labels, 31, first))
    return shards


def pictures_of(options: argparse.Namespace) -> list[Shard]:
    if options.second:
        return group_shards(options.work)
    return [open_shard(folder) for folder in shard_folders(options.work / "pictures")]


def restored_groups(work: Path, shards: list[Shard]) -> list[Shard]:
    """The first of these shards as the finished autoencoder gives them back, made once."""
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(work / "vae" / "final").eval()
    found = []
    for shard in shards[:3]:
        kept = work / "groups" / f"restored-{shard.first:05d}.npy"
        if not kept.exists():
            np.save(kept, restored_images(vae, shard.images, np.random.default_rng(shard.first), 0.35))
        images = np.load(kept, mmap_mode="r").reshape(shard.images.shape)
        found.append(Shard(images, shard.weights, shard.labels, shard.seed, shard.first))
    return found


def restored_shards(work: Path, count: int) -> list[Shard]:
    """The first shards as the finished autoencoder gives them back, made once."""
    if not (work / "vae" / "final").exists():
        return []
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(work / "vae" / "final").eval()
    shards = []
    for folder in shard_folders(work / "pictures")[:count]:
        shard = open_shard(folder)
        kept = work / "restored" / f"{folder.name}.npy"
        if not kept.exists():
            kept.parent.mkdir(exist_ok=True)
            np.save(kept, restored_images(vae, shard.images, np.random.default_rng(shard.first), 0.35))
        shards.append(
            Shard(np.load(kept, mmap_mode="r"), shard.weights, shard.labels, shard.seed, shard.first)
        )
    return shards


def loss_of(outputs: dict[str, torch.Tensor], labels: torch.Tensor) -> torch.Tensor:
    """The mean cross-entropy over the attributes that each picture shows."""
    losses = [
        nn.functional.cross_entropy(outputs[name].float(), labels[:, place], ignore_index=-1)
        for place, name in enumerate(ATTRIBUTE_NAMES)
    ]
    return torch.stack([loss for loss in losses if not loss.isnan()]).mean()


@torch.inference_mode()
def accuracy(network: nn.Module, images: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Share read rightly of each visible attribute, and their mean."""
    truth = torch.from_numpy(labels.astype(np.int64))
    parts = [network(to_tensor(images[start : start + 100])) for start in range(0, len(images), 100)]
    table = {}
    for place, name in enumerate(ATTRIBUTE_NAMES):
        guess = torch.cat([part[name] for part in parts]).argmax(dim=1)
        shown = truth[:, place] >= 0
        table[name] = round(float((guess == truth[:, place])[shown].float().mean()), 4)
    table["mean"] = round(sum(table.values()) / len(table), 4)
    return table


def judge_now(network: AttributeNetwork, work: Path) -> dict[str, dict[str, float]]:
    """Accuracy on held-out pictures, clean and through the autoencoder once there is one."""
    held = open_shard(shard_folders(work / "held-out")[0])
    tables = {"clean": accuracy(network, held.images, held.labels)}
    if (work / "vae" / "final").exists():
        from diffusers import AutoencoderKL

        vae = AutoencoderKL.from_pretrained(work / "vae" / "final").eval()
        again = restored_images(vae, held.images[:1000], np.random.default_rng(0), 0.0)
        tables["restored"] = accuracy(network, again, held.labels[:1000])
    return tables


def train(options: argparse.Namespace) -> None:
    torch.manual_seed(options.seed)
    rng = np.random.default_rng(options.seed + int(options.again))
    network = AttributeNetwork.from_config(config())
    if (
        options.second
    ):  # the encoder's trunk has seen the same pictures, and the first reader has no part in it
        encoder = load_file(MODEL_DIR / "encoder" / "model.safetensors")
        known = {name: value for name, value in encoder.items() if name.startswith("trunk.")}
        network.load_state_dict(known, strict=False)
    checkpoint = options.work / folder_of(options) / "checkpoint.pt"
    if checkpoint.exists():
        network.load_state_dict(torch.load(checkpoint)["average"])
    optimizer = Both(network, options.rate, muon=False, betas=(0.9, 0.98))
    average = Average(network, 0.998)
    clean = pictures_of(options)
    restored = restored_shards(options.work, 3) if options.again else []
    restored += restored_groups(options.work, clean) if options.second else []
    begun, shown, step = time.time(), time.time(), 0
    while (spent := time.time() - begun) < options.minutes * 60:
        progress = spent / (options.minutes * 60)
        optimizer.set_rate(min(1.0, (step + 1) / 150) * 0.5 * (1 + math.cos(math.pi * progress)) + 1e-3)
        source = restored if restored and rng.random() < 0.5 else clean
        shard = source[int(rng.integers(len(source)))]
        rows = np.sort(rng.integers(len(shard.images), size=options.batch))
        x = harmed(to_tensor(shard.images[rows]), rng)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=cpu_has_bf16()):
            outputs = network.train()(x)
        loss = loss_of(outputs, torch.from_numpy(shard.labels[rows].astype(np.int64)))
        loss.backward()
        optimizer.step()
        average.update(network)
        step += 1
        if time.time() - shown > 60:
            clean = clean if options.second else pictures_of(options)
            report(
                average,
                options.work,
                folder_of(options),
                f"{time.strftime('%H:%M:%S')} step {step} loss {loss.item():.4f}",
                quick=True,
            )
            shown = time.time()
    report(
        average, options.work, folder_of(options), f"finished, {step} steps of {options.batch}", quick=False
    )


def folder_of(options: argparse.Namespace) -> str:
    return "second_reader" if options.second else "reader"


def report(average: Average, work: Path, name: str, line: str, quick: bool) -> None:
    """Save the averaged network, say how well it reads, and at the end write it as the runtime loads it."""
    network = AttributeNetwork.from_config(config()).eval()
    network.load_state_dict(average.values)
    folder = work / name
    save_whole({"average": average.values}, folder / "checkpoint.pt")
    if quick:
        held = open_shard(shard_folders(work / "held-out")[0])
        print(line, accuracy(network, held.images[:500], held.labels[:500]), flush=True)
        return
    tables = judge_now(network, work)
    (folder / "final").mkdir(exist_ok=True)
    halves = {
        name: value.half() if value.is_floating_point() else value for name, value in average.values.items()
    }
    save_file(halves, folder / "final" / "model.safetensors")
    (folder / "final" / "config.json").write_text(json.dumps(config(), indent=1) + "\n")
    (folder / "final-accuracy.json").write_text(json.dumps(tables, indent=1) + "\n")
    print(line, json.dumps(tables), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the attribute reader.")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=14)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument(
        "--again", action="store_true", help="go on, with pictures from the finished autoencoder"
    )
    parser.add_argument(
        "--second", action="store_true", help="the second reader, from the encoder's pictures"
    )
    parser.add_argument("--seed", type=int, default=5)
    train(parser.parse_args())


if __name__ == "__main__":
    main()
