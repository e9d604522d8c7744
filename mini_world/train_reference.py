"""The edit ability: an image-prompt adapter (IP-Adapter Plus, arXiv 2308.06721) with which the finished model draws the
person of a reference picture in another pose, place and light. Nothing of the model changes; the adapter is taught by
the model itself: with a reference and a caption that leaves the person out, it is to draw what the model draws where the
caption tells all that the reference shows. That target has no noise in it, so it is learnt in minutes.
"""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor, IPAdapterAttnProcessor
from diffusers.models.embeddings import IPAdapterPlusImageProjection
from safetensors.torch import save_file
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer

from lora_foundry.mini import MODEL_DIR
from lora_foundry.mini.vision import ADAPTER, ImageFeatures
from mini_world.captions import IDENTITY_ORDER, SHOT_ORDER, visible_tags
from mini_world.data import GROUP_CHARACTERS, GROUP_SHOTS, group_scenes, to_tensor
from mini_world.optimizer import Average, Both, save_whole
from mini_world.scene import Scene, is_visible
from mini_world.train_diffusion import NOISE_SCHEDULE, where_people_are
from mini_world.train_reader import harmed
from mini_world.train_text import encode
from mini_world.vocabulary import QUALITY_TAGS, TRAITS, outfit_tag, tag

SEED_OF_GROUPS = 41
HIDDEN, TOKENS = 96, 8
NO_REFERENCE_SHARE = 0.12
NOTHING_SAID_SHARE = 0.4
"""Share of captions that say nothing of the person; others tell some of it, as descriptions do."""
CONTRADICTED_SHARE = 0.1
KEPT_WORDS = 0.85


def prepare(work: Path) -> None:
    """Latents and the encoder's features of every drawn group, as float16."""
    vae = AutoencoderKL.from_pretrained(MODEL_DIR / "vae", dtype=torch.float32).eval()
    eye, rng = ImageFeatures(), np.random.default_rng(42)
    for file in sorted((work / "groups").glob("groups-?????.npy")):
        latents, features = (
            file.with_name(f"{part}-{file.stem[-5:]}.npy") for part in ("latents", "features")
        )
        if features.exists():
            continue
        flat = np.load(file, mmap_mode="r").reshape(-1, 64, 64, 3)
        z, seen = [], []
        with torch.inference_mode():
            for start in range(0, len(flat), 40):
                pixels = to_tensor(flat[start : start + 40])
                with torch.autocast("cpu", dtype=torch.bfloat16):
                    mean = vae.encode(pixels).latent_dist.mean
                z.append((mean.float() * vae.config.scaling_factor).half().numpy())
                suffered = harmed(pixels, rng) if rng.random() < 0.5 else pixels
                seen.append(eye.of_pixels(suffered).half().numpy())
        np.save(latents, np.concatenate(z))
        aside = features.with_suffix(".part.npy")
        np.save(aside, np.concatenate(seen))
        aside.rename(features)
        print(f"{time.strftime('%H:%M:%S')} {file.stem}", flush=True)


@dataclass(frozen=True)
class Example:
    """One picture to be drawn, the features of another of the same person, and both captions."""

    latents: np.ndarray
    reference: np.ndarray | None
    told: str
    meant: str


class Source:
    """Pairs of pictures of one person; the first hundred groups are kept for judging."""

    def __init__(self, work: Path, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.work = work
        self.shards: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self.refresh()

    def refresh(self) -> None:
        """Takes in what has been prepared since."""
        shape = (-1, GROUP_CHARACTERS, GROUP_SHOTS)
        for file in sorted((self.work / "groups").glob("features-?????.npy"))[1:]:
            if (first := int(file.stem[-5:])) not in self.shards:
                latents = np.load(file.with_name(file.name.replace("features", "latents")))
                features = np.load(file)
                self.shards[first] = (
                    latents.reshape(*shape, *latents.shape[1:]),
                    features.reshape(*shape, *features.shape[1:]),
                )
        self.firsts = sorted(self.shards)

    def example(self) -> Example:
        first = self.firsts[int(self.rng.integers(len(self.firsts)))]
        latents, features = self.shards[first]
        group = int(self.rng.integers(len(latents)))
        person = int(self.rng.integers(GROUP_CHARACTERS))
        drawn, shown = (int(shot) for shot in self.rng.permutation(GROUP_SHOTS)[:2])
        scenes = group_scenes(SEED_OF_GROUPS, first + group)[person]
        told, meant = captions(scenes[drawn], scenes[shown], self.rng)
        z = latents[group, person, drawn]
        if self.rng.random() < NO_REFERENCE_SHARE:
            words = told if self.rng.random() < 0.5 else ""
            return Example(z, None, words, words)
        return Example(z, features[group, person, shown], told, meant)

    def batch(
        self, size: int, nothing: np.ndarray
    ) -> tuple[torch.Tensor, torch.Tensor, list[str], list[str]]:
        """Latents, features, what the captions tell, and what they would tell in full."""
        rows = [self.example() for _ in range(size)]
        references = [nothing if row.reference is None else row.reference for row in rows]
        return (
            torch.from_numpy(np.stack([row.latents for row in rows])).float(),
            torch.from_numpy(np.stack(references)).float(),
            [row.told for row in rows],
            [row.meant for row in rows],
        )


def captions(drawn: Scene, shown: Scene, rng: np.random.Generator) -> tuple[str, str]:
    """A caption of `drawn` that leaves most of the person to the reference `shown`, and one that tells all that this
    shows. What the caption does tell of the person counts, even against the reference."""
    person = {key: text for key, text in visible_tags(shown).items() if key in IDENTITY_ORDER}
    if "outfit" in person and not is_visible(shown, "outfit_color"):
        del person["outfit"]
    if rng.random() < CONTRADICTED_SHARE:
        key = str(rng.choice(IDENTITY_ORDER))
        person[key] = another(key, rng)
        said = {key}
    elif rng.random() < NOTHING_SAID_SHARE:
        said = set()
    else:
        share = rng.random()
        said = {key for key in person if rng.random() < share}
    shot = {key: text for key, text in visible_tags(drawn).items() if key in SHOT_ORDER}
    kept = [text for text in shot.values() if rng.random() < KEPT_WORDS]
    quality = list(QUALITY_TAGS) if rng.random() < 0.75 else []
    return (
        ", ".join([*(text for key, text in person.items() if key in said), *kept, *quality]),
        ", ".join([*person.values(), *kept, *quality]),
    )


def another(key: str, rng: np.random.Generator) -> str:
    """The words for a random value of a trait."""
    if key == "outfit":
        return outfit_tag(str(rng.choice(TRAITS["outfit"])), str(rng.choice(TRAITS["outfit_color"])))
    return tag(key, str(rng.choice(TRAITS[key])))


class Adapter(nn.Module):
    """What is trained: the resampler, and keys and values for its tokens beside those of the text."""

    def __init__(self, unet: UNet2DConditionModel, width: int) -> None:
        super().__init__()
        across = unet.config.cross_attention_dim
        # Depth 4 and heads of 64 are what the library builds when it loads such a file.
        self.resampler = IPAdapterPlusImageProjection(
            embed_dims=width, output_dims=across, hidden_dims=HIDDEN, heads=1, num_queries=TOKENS
        )
        self.processors = nn.ModuleList()
        everything = {}
        for name in unet.attn_processors:
            if not name.endswith("attn2.processor"):
                everything[name] = AttnProcessor()
                continue
            attention = unet.get_submodule(name.removesuffix(".processor"))
            processor = IPAdapterAttnProcessor(attention.to_q.in_features, across, num_tokens=(TOKENS,))
            processor.to_k_ip[0].weight.data.copy_(attention.to_k.weight)
            processor.to_v_ip[0].weight.data.copy_(attention.to_v.weight)
            self.processors.append(processor)
            everything[name] = processor
        unet.set_attn_processor(everything)

    def published(self) -> dict[str, torch.Tensor]:
        """The weights under the names of the published files, as float16."""
        tensors = {}
        for name, value in self.resampler.state_dict().items():
            tensors[f"image_proj.{published_name(name)}"] = value
        for layer in range(len(self.resampler.layers)):
            key, value = (tensors.pop(f"image_proj.layers.{layer}.0.to_{part}.weight") for part in "kv")
            tensors[f"image_proj.layers.{layer}.0.to_kv.weight"] = torch.cat([key, value])
        for number, processor in enumerate(self.processors):
            for part in ("to_k_ip", "to_v_ip"):
                weight = getattr(processor, part)[0].weight.detach()
                tensors[f"ip_adapter.{2 * number + 1}.{part}.weight"] = weight
        return {name: value.half().contiguous() for name, value in tensors.items()}


def published_name(name: str) -> str:
    """What the published files call a weight of the library's resampler."""
    parts = name.split(".")
    if parts[0] != "layers":
        return name
    layer, rest = parts[1], ".".join(parts[2:])
    known = {
        "ln0.": "0.norm1.",
        "ln1.": "0.norm2.",
        "attn.to_out.0.": "0.to_out.",
        "attn.": "0.",
        "ff.0.": "1.0.",
        "ff.1.net.0.proj.": "1.1.",
        "ff.1.net.2.": "1.3.",
    }
    for own, theirs in known.items():
        if rest.startswith(own):
            return f"layers.{layer}.{theirs}{rest.removeprefix(own)}"
    raise KeyError(name)


class Run:
    """The frozen model twice, as teacher and under the adapter, and all that a checkpoint holds."""

    def __init__(self, options: argparse.Namespace) -> None:
        torch.manual_seed(options.seed)
        self.folder: Path = options.work / "reference"
        self.tokenizer = CLIPTokenizer.from_pretrained(MODEL_DIR / "tokenizer")
        text = CLIPTextModel.from_pretrained(MODEL_DIR / "text_encoder", dtype=torch.float32)
        self.text = text.requires_grad_(False).eval()
        self.teacher, self.unet = (
            UNet2DConditionModel.from_pretrained(MODEL_DIR / "unet", dtype=torch.float32)
            .requires_grad_(False)
            .eval()
            for _ in range(2)
        )
        self.teacher.set_attn_processor(AttnProcessor())
        self.eye = ImageFeatures()
        self.nothing = self.eye.nothing()[0].numpy()
        self.adapter = Adapter(self.unet, self.eye.width)
        self.optimizer = Both(self.adapter, options.rate, muon=True)
        self.average = Average(self.adapter, 0.998)
        self.scheduler = DDPMScheduler(**NOISE_SCHEDULE)
        self.step, self.spent = 0, 0.0
        checkpoint = self.folder / "checkpoint.pt"
        if checkpoint.exists():
            state = torch.load(checkpoint)
            self.adapter.load_state_dict(state["adapter"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.average.values, self.average.count = state["average"], state["step"]
            self.step, self.spent = state["step"], state["spent"]

    def save(self) -> None:
        save_whole(
            {
                "adapter": self.adapter.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "average": self.average.values,
                "step": self.step,
                "spent": self.spent,
            },
            self.folder / "checkpoint.pt",
        )

    def loss(
        self, latents: torch.Tensor, references: torch.Tensor, told: list[str], meant: list[str]
    ) -> torch.Tensor:
        """Squared difference of the two velocities, more often where there is much noise: there it is decided who is
        drawn."""
        count = len(latents)
        spread = (torch.randperm(count) + torch.rand(count)) / count
        times = (spread.sqrt() * 1000).long().clamp(max=999)
        noisy = self.scheduler.add_noise(latents, torch.randn_like(latents), times)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            with torch.no_grad():
                states = self.text(encode(self.tokenizer, told + meant)).last_hidden_state
                target = self.teacher(noisy, times, states[count:]).sample.float()
            seen = self.adapter.resampler(references)
            guess = self.unet(noisy, times, (states[:count], [seen])).sample
        return ((guess.float() - target).square() * where_people_are()).mean()


def train(options: argparse.Namespace) -> None:
    """For a number of minutes in all; goes on from its checkpoint."""
    run = Run(options)
    source = Source(options.work, options.seed + run.step)
    torch.manual_seed(options.seed + run.step)
    limit, begun, shown = options.minutes * 60, time.time() - run.spent, time.time()
    losses: list[float] = []
    while (spent := time.time() - begun) < limit:
        falling = 0.5 * (1 + math.cos(math.pi * spent / limit))
        loss = run.loss(*source.batch(options.batch, run.nothing))
        loss.backward()
        run.optimizer.set_rate(falling * min(1.0, (run.step + 1) / 100) + 1e-3)
        nn.utils.clip_grad_norm_(run.adapter.parameters(), 1.0)
        run.optimizer.step()
        run.average.update(run.adapter)
        run.step += 1
        losses.append(float(loss))
        if time.time() - shown > 60:
            print(
                f"{time.strftime('%H:%M:%S')} step {run.step} loss {np.mean(losses):.4f} "
                f"without a reference {unguided(run, source):.4f}",
                flush=True,
            )
            run.spent, losses, shown = spent, [], time.time()
            run.save()
            source.refresh()
    run.spent = limit
    run.save()
    print(f"finished: {run.step} steps of {options.batch}", flush=True)


@torch.no_grad()
def unguided(run: Run, source: Source) -> float:
    """The loss where every reference is taken away: what the adapter has to win."""
    latents, references, told, meant = source.batch(32, run.nothing)
    nothing = torch.from_numpy(run.nothing).expand_as(references)
    return float(run.loss(latents, nothing, told, meant))


def export(options: argparse.Namespace) -> None:
    """The averaged weights as the file that ships."""
    run = Run(options)
    run.adapter.load_state_dict(run.average.values)
    ADAPTER.parent.mkdir(parents=True, exist_ok=True)
    aside = ADAPTER.with_suffix(".part")
    save_file(run.adapter.published(), aside, metadata={"format": "pt"})
    aside.replace(ADAPTER)
    print(f"{ADAPTER}: {ADAPTER.stat().st_size} bytes after {run.step} steps")


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the image-prompt adapter.")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--stage", choices=("prepare", "train", "export"), default="train")
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=808)
    options = parser.parse_args()
    {"prepare": lambda _: prepare(options.work), "train": train, "export": export}[options.stage](options)


if __name__ == "__main__":
    main()
