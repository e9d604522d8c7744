"""Everything random about training step n, derived from the seed and n alone. Nothing is carried from step to
step, so a run that was stopped and goes on draws exactly what an undisturbed one draws, and needs no
generator's state."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from lora_foundry.domain.sections import TrainSection
from lora_foundry.ports import TrainingImage


class Sample(NamedTuple):
    """One member of a step's batch: which picture, under which caption."""

    image: int
    caption: str


class Draws:
    """The random choices of every step."""

    def __init__(self, settings: TrainSection, images: Sequence[TrainingImage]) -> None:
        self._settings = settings
        self._images = images
        self._epoch = [index for index, image in enumerate(images) for _ in range(image.repeats)]
        self._order = lru_cache(maxsize=4)(self._shuffled)

    def samples(self, step: int) -> list[Sample]:
        """The batch of step `step` (counted from 0): the epochs follow one another without a gap, each
        shuffled."""
        size = self._settings.batch_size
        rng = random.Random(f"captions-{self._settings.seed}-{step}")
        chosen = []
        for position in range(step * size, (step + 1) * size):
            epoch, place = divmod(position, len(self._epoch))
            image = self._order(epoch)[place]
            chosen.append(Sample(image, self._caption(self._images[image].caption, rng)))
        return chosen

    def noise(self, step: int, shape: Sequence[int]) -> Tensor:
        """Normal noise; with a noise offset each channel is shifted as a whole (Guttenberg 2023)."""
        noise = torch.randn(tuple(shape), generator=self._generator("noise", step))
        if self._settings.noise_offset > 0:
            shift = torch.randn(*shape[:2], 1, 1, generator=self._generator("offset", step))
            noise += self._settings.noise_offset * shift
        return noise

    def positions(self, step: int) -> Tensor:
        """How far each sample is noised, in 0..1: uniform, and spread evenly over the batch, which steadies
        it."""
        size = self._settings.batch_size
        generator = self._generator("positions", step)
        places = torch.randperm(size, generator=generator) + torch.rand(size, generator=generator)
        return places / size

    def _shuffled(self, epoch: int) -> list[int]:
        order = list(self._epoch)
        random.Random(f"order-{self._settings.seed}-{epoch}").shuffle(order)
        return order

    def _caption(self, caption: str, rng: random.Random) -> str:
        if rng.random() < self._settings.caption_dropout:
            return ""
        return (
            shuffle_tags(caption, self._settings.keep_tokens, rng) if self._settings.shuffle_tags else caption
        )

    def _generator(self, purpose: str, step: int) -> torch.Generator:
        return torch.Generator().manual_seed(derive_seed(self._settings.seed, purpose, step))


def derive_seed(seed: int, purpose: str, step: int = 0) -> int:
    """A seed for one purpose at one step; neighbours have nothing in common."""
    digest = hashlib.blake2b(f"{seed}/{purpose}/{step}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def shuffle_tags(caption: str, keep: int, rng: random.Random) -> str:
    """The caption with its tags in another order, the first `keep` staying where they are."""
    tags = [tag.strip() for tag in caption.split(",") if tag.strip()]
    rest = tags[keep:]
    rng.shuffle(rest)
    return ", ".join(tags[:keep] + rest)
