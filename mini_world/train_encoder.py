"""The identity encoder: pictures of one character lie close together, whatever the shot. Its batches
hold eight characters, half of them near relatives of the others, each in the same four shots, so that
pose, place, light and framing are exactly what cannot help. Other pictures, another seed and another
goal than the reader's.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from lora_foundry.mini.networks import EmbeddingNetwork
from mini_world.data import GROUP_CHARACTERS, GROUP_SHOTS, to_tensor
from mini_world.optimizer import Average, Both, save_whole
from mini_world.train_reader import harmed

CONFIG = {"image_size": 64, "widths": [24, 40, 80, 120], "dimension": 64, "places": 4}
TEMPERATURE = 0.1
TOGETHER = 3


def groups(work: Path, first: int = 0) -> list[np.ndarray]:
    """The drawn groups, left on disk; the very first hundred are kept for judging."""
    return [
        np.load(file, mmap_mode="r") for file in sorted((work / "groups").glob("groups-?????.npy"))[first:]
    ]


def loss_of(vectors: torch.Tensor, people: torch.Tensor) -> torch.Tensor:
    """Each picture should find its own character's others among all pictures of the batch."""
    logits = vectors.float() @ vectors.float().T / TEMPERATURE
    itself = torch.eye(len(people), dtype=torch.bool)
    same = (people[:, None] == people[None]) & ~itself
    logs = logits.masked_fill(itself, -1e9).log_softmax(dim=1)
    return -(logs * same).sum(1).div(same.sum(1)).mean()


@torch.inference_mode()
def judged(network: nn.Module, held: np.ndarray) -> dict[str, float]:
    """How far apart the same and other characters lie, and how often a picture's nearest of another shot of
    its group is its own character (chance 1 in 8)."""
    same, other, hits, shots = [], [], [], []
    for group in held:
        v = network(to_tensor(group.reshape(-1, 64, 64, 3))).reshape(GROUP_CHARACTERS, GROUP_SHOTS, -1)
        near = torch.einsum("asd,btd->asbt", v, v)
        for s in range(GROUP_SHOTS):
            for t in range(GROUP_SHOTS):
                table = near[:, s, :, t]
                own = table.diagonal()
                if s == t:
                    shots.append(float((table.sum() - own.sum()) / (table.numel() - len(own))))
                    continue
                same += own.tolist()
                other.append(float((table.sum() - own.sum()) / (table.numel() - len(own))))
                hits += (table.argmax(1) == torch.arange(len(own))).float().tolist()
    return {
        "same character, other shot": round(float(np.mean(same)), 3),
        "other character, other shot": round(float(np.mean(other)), 3),
        "other character, same shot": round(float(np.mean(shots)), 3),
        "found": round(float(np.mean(hits)), 4),
    }


def train(options: argparse.Namespace) -> None:
    torch.manual_seed(options.seed)
    rng = np.random.default_rng(options.seed)
    network = EmbeddingNetwork.from_config(CONFIG)
    checkpoint = options.work / "encoder" / "checkpoint.pt"
    if checkpoint.exists():
        network.load_state_dict(torch.load(checkpoint)["average"])
    optimizer = Both(network, options.rate, muon=True, betas=(0.9, 0.98))
    average = Average(network, 0.998)
    held, drawn = groups(options.work)[0][:40], groups(options.work, 1)
    judge = EmbeddingNetwork.from_config(CONFIG).eval()
    begun, shown, step = time.time(), time.time(), 0
    while (spent := time.time() - begun) < options.minutes * 60:
        optimizer.set_rate(
            min(1.0, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * spent / options.minutes / 60)) + 1e-3
        )
        images, people = [], []
        for place in range(TOGETHER):
            block = drawn[int(rng.integers(len(drawn)))]
            images.append(block[int(rng.integers(len(block)))].reshape(-1, 64, 64, 3))
            people.append(np.repeat(np.arange(GROUP_CHARACTERS), GROUP_SHOTS) + place * GROUP_CHARACTERS)
        x = torch.cat([harmed(to_tensor(part), rng) for part in images])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            vectors = network.train()(x)
        loss = loss_of(vectors, torch.from_numpy(np.concatenate(people)))
        loss.backward()
        optimizer.step()
        average.update(network)
        step += 1
        if time.time() - shown > 60:
            judge.load_state_dict(average.values)
            save_whole({"average": average.values}, checkpoint)
            print(
                f"{time.strftime('%H:%M:%S')} step {step} loss {loss.item():.3f} {judged(judge, held[:10])}",
                flush=True,
            )
            drawn = groups(options.work, 1)
            shown = time.time()
    judge.load_state_dict(average.values)
    finish(judge, held, options.work / "encoder", step)


def finish(network: nn.Module, held: np.ndarray, folder: Path, step: int) -> None:
    """Write the network as the runtime loads it, and how well it does."""
    (folder / "final").mkdir(parents=True, exist_ok=True)
    state = network.state_dict()
    halves = {name: value.half() if value.is_floating_point() else value for name, value in state.items()}
    save_file(halves, folder / "final" / "model.safetensors")
    save_whole({"average": state}, folder / "checkpoint.pt")
    (folder / "final" / "config.json").write_text(json.dumps(CONFIG, indent=1) + "\n")
    table = judged(network, held)
    (folder / "final-result.json").write_text(json.dumps(table, indent=1) + "\n")
    print(f"finished, {step} steps", json.dumps(table), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the identity encoder.")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=14)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=606)
    train(parser.parse_args())


if __name__ == "__main__":
    main()
