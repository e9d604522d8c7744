"""The diffusion model: the UNet and the text encoder learn together, from stored latents and captions
sampled afresh each time. The rate stays constant until someone asks for the end by writing a file named
`decay`, then falls to nothing, so that any moment can be made a good last one. Minutes, not steps, are
what is given.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from transformers import CLIPTokenizer

from mini_world.captions import sample_caption
from mini_world.data import open_shard, scene_at, shard_folders, to_tensor
from mini_world.optimizer import Average, Both, save_whole
from mini_world.train_text import build as build_text
from mini_world.train_text import encode
from mini_world.train_tokenizer import POOR

NOISE_SCHEDULE = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
}
EMPTY_SHARE = 0.1
TEXT_SHARE = 0.3
OUTER = ("conv_in", "conv_out", "embedding", "time_emb")


def build_unet(widths: tuple[int, int] = (48, 160)) -> UNet2DConditionModel:
    """An untrained UNet of the shipped form."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        block_out_channels=widths,
        layers_per_block=1,
        cross_attention_dim=160,
        attention_head_dim=(2, 4),
        norm_num_groups=16,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )


def encode_latents(work: Path) -> None:
    """Latents of every finished shard that has none yet, scaled, as float16."""
    vae = AutoencoderKL.from_pretrained(work / "vae" / "final").eval()
    (work / "latents").mkdir(exist_ok=True)
    for folder in shard_folders(work / "pictures"):
        target = work / "latents" / f"{folder.name}.npy"
        if target.exists():
            continue
        images, parts = open_shard(folder).images, []
        with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
            for start in range(0, len(images), 50):
                z = vae.encode(to_tensor(images[start : start + 50])).latent_dist.mean
                parts.append((z.float() * vae.config.scaling_factor).half().numpy())
        aside = target.with_suffix(".part.npy")
        np.save(aside, np.concatenate(parts))
        aside.rename(target)
        print(f"{time.strftime('%H:%M:%S')} latents of {folder.name}", flush=True)


class Source:
    """Batches of latents and token ids from every shard whose latents are ready."""

    def __init__(self, work: Path, tokenizer: CLIPTokenizer, seed: int) -> None:
        self.work, self.tokenizer = work, tokenizer
        self.rng = np.random.default_rng(seed)
        self.shards: dict[str, tuple[np.ndarray, int, int]] = {}
        self.refresh()

    def refresh(self) -> None:
        for folder in shard_folders(self.work / "pictures"):
            latents = self.work / "latents" / f"{folder.name}.npy"
            if latents.exists() and folder.name not in self.shards:
                shard = open_shard(folder)
                self.shards[folder.name] = (np.load(latents), shard.seed, shard.first)
        self.names = sorted(self.shards)

    def caption(self, seed: int, index: int) -> str:
        """A fresh caption, or none, or the words of a negative prompt, which are to mean the same as none."""
        if self.rng.random() >= EMPTY_SHARE:
            return sample_caption(scene_at(seed, index), self.rng)
        if self.rng.random() >= 0.25:
            return ""
        return ", ".join(self.rng.permutation(POOR)[: int(self.rng.integers(1, 8))])

    def batch(self, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        rows, captions = [], []
        for _ in range(size):
            latents, seed, first = self.shards[self.names[int(self.rng.integers(len(self.names)))]]
            row = int(self.rng.integers(len(latents)))
            rows.append(latents[row])
            captions.append(self.caption(seed, first + row))
        return torch.from_numpy(np.stack(rows)).float(), encode(self.tokenizer, captions)


def loss_of(unet, text, scheduler: DDPMScheduler, latents: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Squared error of the predicted velocity at times spread evenly over the batch."""
    count = len(latents)
    times = ((torch.randperm(count) + torch.rand(count)) / count * 1000).long().clamp(max=999)
    noise = torch.randn_like(latents)
    noisy = scheduler.add_noise(latents, noise, times)
    target = scheduler.get_velocity(latents, noise, times)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        guess = unet(noisy, times, text(ids).last_hidden_state).sample
    error = (guess.float() - target).square()
    return (error * where_people_are()).mean()


def where_people_are() -> torch.Tensor:
    """More weight in the middle, most where limbs and clothes are: backgrounds come early, poses late."""
    weight = torch.ones(16, 16)
    weight[1:, 3:13] = 2.0
    weight[7:, 3:13] = 3.0
    return weight / weight.mean()


class Run:
    """Everything that a checkpoint holds."""

    def __init__(self, options: argparse.Namespace) -> None:
        torch.manual_seed(options.seed)
        work: Path = options.work
        self.folder = work / options.name
        self.tokenizer = CLIPTokenizer.from_pretrained(work / "tokenizer")
        self.unet = build_unet(tuple(options.widths))
        self.text = build_text(self.tokenizer)
        self.text.load_state_dict(torch.load(work / "text" / "checkpoint.pt")["text"])
        # The fused attention's backward pass costs a third of a step on a CPU; the plain one does not.
        self.unet.set_attn_processor(AttnProcessor())
        self.text.set_attn_implementation("eager")
        self.optimizers = [
            Both(self.unet, options.rate, muon=options.muon, outer=OUTER),
            Both(self.text, options.rate * TEXT_SHARE, muon=False),
        ]
        self.averages = [Average(self.unet, 0.999), Average(self.text, 0.999)]
        self.step, self.samples = 0, 0
        checkpoint = self.folder / "checkpoint.pt"
        if checkpoint.exists():
            self.restore(torch.load(checkpoint))

    def restore(self, state: dict) -> None:
        self.unet.load_state_dict(state["unet"])
        self.text.load_state_dict(state["text"])
        for optimizer, kept in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(kept)
        for average, values in zip(self.averages, state["averages"], strict=True):
            average.values, average.count = values, state["step"]
        self.step, self.samples = state["step"], state["samples"]

    def save(self) -> None:
        save_whole(
            {
                "unet": self.unet.state_dict(),
                "text": self.text.state_dict(),
                "step": self.step,
                "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
                "averages": [average.values for average in self.averages],
                "samples": self.samples,
            },
            self.folder / "checkpoint.pt",
        )

    def learn(
        self, scheduler: DDPMScheduler, batch: tuple[torch.Tensor, torch.Tensor], factor: float
    ) -> float:
        """One step; returns the loss."""
        loss = loss_of(self.unet, self.text, scheduler, *batch)
        loss.backward()
        for optimizer, module in zip(self.optimizers, (self.unet, self.text), strict=True):
            optimizer.set_rate(factor)
            torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimizer.step()
        self.step, self.samples = self.step + 1, self.samples + len(batch[0])
        for average, module in zip(self.averages, (self.unet, self.text), strict=True):
            average.update(module)
        return float(loss)


class Fall:
    """The rate once the file `decay` is there: from one to nothing over the minutes it names (15 if none)."""

    def __init__(self, file: Path, minutes: float) -> None:
        self.file, self.limit = file, time.time() + minutes * 60
        self.begun: float | None = None
        self.length = 0.0

    def factor(self) -> float:
        now = time.time()
        if self.begun is None and (self.file.exists() or now > self.limit):
            words = self.file.read_text().split() if self.file.exists() else []
            self.begun, self.length = now, 60 * (float(words[0]) if words else 15.0)
            print(
                f"{time.strftime('%H:%M:%S')} the rate falls for {self.length / 60:.0f} minutes", flush=True
            )
        return 1.0 if self.begun is None else max(0.0, 1 - (now - self.begun) / self.length)


def train(options: argparse.Namespace) -> None:
    run = Run(options)
    source = Source(options.work, run.tokenizer, options.seed + run.step)
    scheduler = DDPMScheduler(**NOISE_SCHEDULE)
    fall = Fall(options.work / "decay", options.minutes)
    torch.manual_seed(options.seed + run.step)
    losses: list[float] = []
    shown = saved = time.time()
    begun = run.samples
    while (falling := fall.factor()) > 0:
        batch = source.batch(options.batch)
        losses.append(run.learn(scheduler, batch, falling * min(1.0, (run.step + 1) / options.warm)))
        if time.time() - shown > 60:
            speed = (run.samples - begun) / (time.time() - shown)
            print(
                f"{time.strftime('%H:%M:%S')} step {run.step} samples {run.samples} "
                f"loss {np.mean(losses):.4f} {speed:.0f}/s rate {falling:.2f} of {len(source.names)} shards",
                flush=True,
            )
            losses, shown, begun = [], time.time(), run.samples
            source.refresh()
        if time.time() - saved > 180:
            run.save()
            saved = time.time()
    run.save()
    (run.folder / "finished").write_text(f"{run.step} {run.samples}\n")
    print(f"finished: {run.step} steps, {run.samples} samples", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the diffusion model with its text encoder.")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--stage", choices=("latents", "train"), default="train")
    parser.add_argument("--name", default="diffusion")
    parser.add_argument("--minutes", type=float, default=60, help="constant rate for at most this long")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--warm", type=int, default=150)
    parser.add_argument("--widths", type=int, nargs=2, default=(48, 160))
    parser.add_argument("--muon", action="store_true")
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_args()
    if options.stage == "latents":
        encode_latents(options.work)
    else:
        train(options)


if __name__ == "__main__":
    main()
