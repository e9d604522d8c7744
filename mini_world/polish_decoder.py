"""More work on the autoencoder's decoder alone, while the diffusion model already trains: the latents
stay as they are, so nothing that was learnt about them is lost, and the pictures get sharper. Its noise
is a little stronger than in the first training, because generated latents are never quite right.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL

from mini_world.data import WEIGHT_SCALE, open_shard, shard_folders, to_tensor
from mini_world.optimizer import Average, Both, save_whole
from mini_world.train_vae import decibels, loss_of, rate


class Pairs:
    """Random batches of stored latents and the pictures that they stand for."""

    def __init__(self, work: Path, factor: float, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.factor = factor
        self.shards = [
            (open_shard(folder), np.load(latents, mmap_mode="r"))
            for folder in shard_folders(work / "pictures")
            if (latents := work / "latents" / f"{folder.name}.npy").exists()
        ]

    def batch(self, size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        shard, latents = self.shards[int(self.rng.integers(len(self.shards)))]
        rows = np.sort(self.rng.integers(len(latents), size=size))
        weights = torch.from_numpy(shard.weights[rows].astype(np.float32) / WEIGHT_SCALE)[:, None]
        return (
            torch.from_numpy(np.array(latents[rows])).float() / self.factor,
            to_tensor(shard.images[rows]),
            weights,
        )


def train(options: argparse.Namespace) -> None:
    torch.manual_seed(options.seed)
    vae = AutoencoderKL.from_pretrained(options.work / "vae" / "final")
    vae.encoder.requires_grad_(False)
    vae.quant_conv.requires_grad_(False)
    folder = options.work / "decoder"
    trained = torch.nn.ModuleDict({"decoder": vae.decoder, "post_quant_conv": vae.post_quant_conv})
    if (folder / "checkpoint.pt").exists():
        trained.load_state_dict(torch.load(folder / "checkpoint.pt"))
    optimizer = Both(trained, options.rate, muon=True, outer=("conv_in", "conv_out", "quant_conv"))
    average = Average(trained, 0.998)
    pairs = Pairs(options.work, vae.config.scaling_factor, options.seed)
    held = to_tensor(open_shard(shard_folders(options.work / "held-out")[0]).images[:200])
    end = options.work / "decoder-end"
    begun, shown, step = time.time(), time.time(), 0
    while (spent := time.time() - begun) < options.minutes * 60 and not end.exists():
        optimizer.set_rate(rate(spent / (options.minutes * 60), (step + 1) / 50))
        z, x, w = pairs.batch(options.batch)
        noise = torch.rand(len(z), 1, 1, 1) * 2 * options.noise / vae.config.scaling_factor
        with torch.autocast("cpu", dtype=torch.bfloat16):
            restored = vae.decode(z + noise * torch.randn_like(z)).sample
        loss = loss_of(restored.float(), x, w)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
        optimizer.step()
        average.update(trained)
        step += 1
        if time.time() - shown > 60:
            finish(vae, trained, average, held, folder, {"steps": step, "minutes": round(spent / 60, 1)})
            shown = time.time()
    finish(vae, trained, average, held, folder, {"steps": step, "minutes": round(spent / 60, 1)})


def finish(vae, trained, average: Average, held: torch.Tensor, folder: Path, result: dict) -> None:
    """Write the averaged decoder as it stands now, and go on with the weights as they were."""
    kept = {name: value.clone() for name, value in trained.state_dict().items()}
    trained.load_state_dict(average.values)
    result = {**result, "decibels": round(decibels(vae, held), 2)}
    save_whole(trained.state_dict(), folder / "checkpoint.pt")
    vae.save_pretrained(folder / "final")
    (folder / "result.json").write_text(json.dumps(result) + "\n")
    trained.load_state_dict(kept)
    print(time.strftime("%H:%M:%S"), json.dumps(result), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Polish the autoencoder's decoder.")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=25)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--noise", type=float, default=0.06)
    parser.add_argument("--seed", type=int, default=9)
    train(parser.parse_args())


if __name__ == "__main__":
    main()
