"""The text encoder before it meets a picture: it learns to say from a caption which tags were named, so
that the diffusion model starts with words that already mean something. Named people are taught here as
well.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from mini_world.captions import sample_caption, visible_tags
from mini_world.optimizer import Both, save_whole
from mini_world.scene import Scene, sample_scene, value_of
from mini_world.train_tokenizer import LENGTH
from mini_world.vocabulary import ATTRIBUTES, TRAITS


def build(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """An untrained text encoder of the shipped form."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=160,
            intermediate_size=480,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=LENGTH,
            projection_dim=160,
            hidden_act="quick_gelu",
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def encode(tokenizer: CLIPTokenizer, captions: list[str]) -> torch.Tensor:
    """Token ids, padded and cut to the model's length."""
    return tokenizer(
        captions, padding="max_length", truncation=True, max_length=LENGTH, return_tensors="pt"
    ).input_ids


def named(scene: Scene, caption: str) -> list[int]:
    """For each attribute 0 where the caption leaves it open, else value plus one; a name says all traits."""
    said = set(caption.split(", "))
    tags = visible_tags(scene)
    answer = []
    for attribute, values in ATTRIBUTES.items():
        key = "outfit" if attribute == "outfit_color" else attribute
        known = tags.get(key) in said or (scene.name is not None and attribute in TRAITS)
        answer.append(1 + values.index(value_of(scene, attribute)) if known else 0)
    return answer


class Heads(nn.Module):
    """One linear reading of a hidden state for each attribute."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, len(values) + 1) for values in ATTRIBUTES.values())

    def forward(self, hidden: torch.Tensor) -> list[torch.Tensor]:
        return [layer(hidden) for layer in self.layers]


def batch(tokenizer: CLIPTokenizer, rng: np.random.Generator, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Captions of new scenes, and what they name."""
    scenes = [sample_scene(rng) for _ in range(size)]
    captions = [sample_caption(scene, rng) for scene in scenes]
    return encode(tokenizer, captions), torch.tensor(
        [named(s, c) for s, c in zip(scenes, captions, strict=True)]
    )


def answers(text: CLIPTextModel, heads: Heads, ids: torch.Tensor) -> list[list[torch.Tensor]]:
    """Read the tags at the end of the caption and at the very last position."""
    hidden = text(ids).last_hidden_state
    end = (ids == text.config.eos_token_id).int().argmax(dim=1)
    return [heads(hidden[torch.arange(len(ids)), end]), heads(hidden[:, -1])]


def train(options: argparse.Namespace) -> None:
    torch.manual_seed(options.seed)
    rng = np.random.default_rng(options.seed)
    tokenizer = CLIPTokenizer.from_pretrained(options.work / "tokenizer")
    text = build(tokenizer)
    heads = Heads(160)
    both = nn.ModuleDict({"text": text, "heads": heads})
    optimizer = Both(both, options.rate, muon=False, betas=(0.9, 0.98))
    shown = time.time()
    for step in range(options.steps):
        optimizer.set_rate(
            min((step + 1) / 200, 1.0) * 0.5 * (1 + math.cos(math.pi * step / options.steps)) + 1e-3
        )
        ids, truth = batch(tokenizer, rng, options.batch)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            outputs = answers(text, heads, ids)
        loss = sum(
            nn.functional.cross_entropy(logits.float(), truth[:, place])
            for reading in outputs
            for place, logits in enumerate(reading)
        ) / (2 * len(ATTRIBUTES))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(both.parameters(), 1.0)
        optimizer.step()
        if time.time() - shown > 30 or step + 1 == options.steps:
            right = (torch.stack([o.argmax(1) for o in outputs[0]], 1) == truth).float().mean()
            print(
                f"{time.strftime('%H:%M:%S')} step {step + 1} loss {loss.item():.4f} right {right:.4f}",
                flush=True,
            )
            save_whole(
                {"text": text.state_dict(), "heads": heads.state_dict(), "step": step + 1},
                options.work / "text" / "checkpoint.pt",
            )
            shown = time.time()
    text.save_pretrained(options.work / "text" / "final")


def main() -> None:
    parser = argparse.ArgumentParser(description="Teach the text encoder the tags.")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=4)
    train(parser.parse_args())


if __name__ == "__main__":
    main()
