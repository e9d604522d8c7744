"""The autoencoder: 64 px pictures to 16x16 latents of four channels and back. It is trained on the mean
of its posterior plus a little noise rather than by sampling, and its loss looks hardest at eyes, mouths
and accessories, because what the autoencoder loses the diffusion model can never draw.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL

from mini_world.data import WEIGHT_SCALE, open_shard, shard_folders, to_tensor
from mini_world.optimizer import Average, Both, save_whole

WIDTHS = (24, 48, 96)
NOISE = 0.05


def build(widths: tuple[int, ...] = WIDTHS) -> AutoencoderKL:
    """An untrained autoencoder of the shipped form."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=widths,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=64,
        mid_block_add_attention=False,
    )


class Pictures:
    """Random batches from all finished shards, re-listed now and then because drawing goes on meanwhile."""

    def __init__(self, root: Path, seed: int) -> None:
        self.root = root
        self.rng = np.random.default_rng(seed)
        self.refresh()

    def refresh(self) -> None:
        self.shards = [open_shard(folder) for folder in shard_folders(self.root)]

    def batch(self, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        shard = self.shards[int(self.rng.integers(len(self.shards)))]
        rows = np.sort(self.rng.integers(len(shard.images), size=size))
        weights = torch.from_numpy(shard.weights[rows].astype(np.float32) / WEIGHT_SCALE)
        return to_tensor(shard.images[rows]), weights[:, None]


def crops(
    x: torch.Tensor, w: torch.Tensor, size: int, rng: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """One square of each picture, mostly around a point that the weights call important."""
    outs, weights = [], []
    room = x.shape[-1] - size
    for picture, weight in zip(x, w, strict=True):
        if rng.random() < 0.7:
            chances = (weight[0].flatten() - 0.9).clamp(min=0).numpy().astype(np.float64)
            point = int(rng.choice(chances.size, p=chances / chances.sum())) if chances.sum() > 0 else 2080
            top, left = (
                int(np.clip(v - size // 2 + rng.integers(-8, 9), 0, room)) for v in divmod(point, x.shape[-1])
            )
        else:
            top, left = (int(v) for v in rng.integers(0, room + 1, size=2))
        outs.append(picture[:, top : top + size, left : left + size])
        weights.append(weight[:, top : top + size, left : left + size])
    return torch.stack(outs), torch.stack(weights)


def edges(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Differences between neighbours, along and across."""
    return x[..., 1:, :] - x[..., :-1, :], x[..., :, 1:] - x[..., :, :-1]


def loss_of(restored: torch.Tensor, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """Weighted squared and absolute error, and absolute error of the edges."""
    d = restored - x
    total = (w * (2.0 * d.square() + 0.25 * d.abs())).mean()
    for mine, true, weight in zip(edges(restored), edges(x), (w[..., 1:, :], w[..., :, 1:]), strict=True):
        total = total + 0.25 * (weight * (mine - true).abs()).mean()
    return total


def noisy(z: torch.Tensor, strength: float) -> torch.Tensor:
    """Latents with noise in proportion to their own spread, so that scaling them up is no way out."""
    return z + strength * z.detach().float().std() * torch.randn_like(z)


@torch.no_grad()
def decibels(vae: AutoencoderKL, x: torch.Tensor) -> float:
    """Peak signal to noise of reconstructions, the mean over all pixels."""
    total = 0.0
    for part in x.split(50):
        restored = vae.decode(vae.encode(part).latent_dist.mean).sample.clamp(-1, 1)
        total += float(((restored - part) / 2).square().mean()) * len(part) / len(x)
    return -10 * math.log10(total)


def rate(progress: float, warm: float) -> float:
    """Warm-up, constant, then a cosine fall over the last 45%."""
    if warm < 1:
        return max(warm, 0.01)
    return 1.0 if progress < 0.55 else 0.5 * (1 + math.cos(math.pi * min(1.0, (progress - 0.55) / 0.45)))


def train(options: argparse.Namespace) -> None:
    torch.manual_seed(options.seed)
    folder: Path = options.work / options.name
    folder.mkdir(parents=True, exist_ok=True)
    vae = build(tuple(options.widths))
    optimizer = Both(vae, options.rate, options.muon, outer=("conv_in", "conv_out", "quant_conv"))
    average = Average(vae, 0.998)
    step, spent = 0, 0.0
    checkpoint = folder / "checkpoint.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint)
        vae.load_state_dict(state["model"])
        average.values = state["average"]
        optimizer.load_state_dict(state["optimizer"])
        step, spent, average.count = state["step"], state["spent"], state["step"]
    pictures = Pictures(options.work / options.pictures, options.seed + step)
    held = to_tensor(open_shard(shard_folders(options.work / "held-out")[0]).images[:200])
    judge = build(tuple(options.widths))
    begun, shown = time.time() - spent, time.time()
    while (spent := time.time() - begun) < options.minutes * 60:
        progress = spent / (options.minutes * 60)
        optimizer.set_rate(rate(progress, (step + 1) / 100))
        cropped = options.crop and progress < options.crop_until
        x, w = pictures.batch(options.batch * 4 if cropped else options.batch)
        if cropped:
            x, w = crops(x, w, options.crop, pictures.rng)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            z = vae.encode(x).latent_dist.mean
            restored = vae.decode(noisy(z, options.noise)).sample
        loss = loss_of(restored.float(), x, w)
        loss = loss + 1e-3 * (z.float().mean().square() + (z.float().std() - 1).square())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        average.update(vae)
        step += 1
        if time.time() - shown > options.report:
            judge.load_state_dict(average.values)
            state = {
                "model": vae.state_dict(),
                "average": average.values,
                "optimizer": optimizer.state_dict(),
                "step": step,
                "spent": spent,
                "widths": list(options.widths),
            }
            save_whole(state, checkpoint)
            print(
                f"{time.strftime('%H:%M:%S')} step {step} {spent / 60:.1f} min loss {loss.item():.4f} "
                f"dB {decibels(judge, held):.2f}",
                flush=True,
            )
            pictures.refresh()
            shown = time.time()
    judge.load_state_dict(average.values)
    finish(judge, held, pictures, folder, step, spent)


@torch.no_grad()
def finish(
    vae: AutoencoderKL, held: torch.Tensor, pictures: Pictures, folder: Path, step: int, spent: float
) -> None:
    """Centre every latent channel and give all the same spread, folded into the 1x1 convolutions
    on either side, narrow the posterior to almost nothing, and write the scaling factor: the file is
    then a plain AutoencoderKL.
    """
    x, _ = pictures.batch(2000)
    z = torch.cat([vae.encode(part).latent_dist.mean for part in x.split(50)])
    mean, spread, whole = z.mean((0, 2, 3)), z.std((0, 2, 3)), z.std()
    factor = whole / spread
    vae.quant_conv.weight[:4] *= factor[:, None, None, None]
    vae.quant_conv.bias[:4] = (vae.quant_conv.bias[:4] - mean) * factor
    vae.quant_conv.weight[4:] = 0
    vae.quant_conv.bias[4:] = -6.5 + 2 * math.log(float(whole))
    vae.post_quant_conv.bias += vae.post_quant_conv.weight[:, :, 0, 0] @ mean
    vae.post_quant_conv.weight /= factor[None, :, None, None]
    again = torch.cat([vae.encode(part).latent_dist.mean for part in x.split(50)])
    vae.register_to_config(scaling_factor=round(float(1 / again.std()), 5))
    vae.save_pretrained(folder / "final")
    result = {
        "decibels": round(decibels(vae, held), 2),
        "steps": step,
        "minutes": round(spent / 60, 1),
        "scaling_factor": vae.config.scaling_factor,
        "channel_mean": again.mean((0, 2, 3)).tolist(),
        "channel_std": again.std((0, 2, 3)).tolist(),
    }
    (folder / "final" / "result.json").write_text(json.dumps(result, indent=1))
    print("final", result, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the autoencoder.")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--name", default="vae")
    parser.add_argument("--pictures", default="pictures")
    parser.add_argument("--minutes", type=float, default=24)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--noise", type=float, default=NOISE)
    parser.add_argument("--widths", type=int, nargs=3, default=WIDTHS)
    parser.add_argument("--crop", type=int, default=0)
    parser.add_argument("--crop-until", type=float, default=0.6)
    parser.add_argument("--muon", action="store_true")
    parser.add_argument("--report", type=float, default=60)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    train(options)


if __name__ == "__main__":
    main()
