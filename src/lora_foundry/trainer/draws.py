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
from torch.nn import functional

from lora_foundry.domain.sections import TrainSection
from lora_foundry.ports import TrainingImage

_LEVELS = 6


class Sample(NamedTuple):
    """One member of a step's batch: which picture, under which caption, and whether left is right."""

    image: int
    caption: str
    flipped: bool = False


class Draws:
    """The random choices of every optimizer step, for all of its batches together, so that how a step is cut into
    batches changes nothing. `groups` are the pictures (by index) that have one shape: a step draws from one group.
    On CUDA noise and positions are drawn on the device, where they are used."""

    def __init__(
        self,
        settings: TrainSection,
        images: Sequence[TrainingImage],
        groups: Sequence[Sequence[int]] | None = None,
        device: torch.device | None = None,
    ) -> None:
        self._device = device if device is not None and device.type == "cuda" else torch.device("cpu")
        self._settings = settings
        self._images = images
        self._size = settings.samples_per_step
        self._groups = [
            [index for index in group for _ in range(images[index].repeats)]
            for group in groups or [range(len(images))]
        ]
        self._order = lru_cache(maxsize=4 * len(self._groups))(self._shuffled)
        self._turns = _turns([len(group) for group in self._groups])

    def samples(self, step: int) -> list[Sample]:
        """The pictures of step `step` (counted from 0): within a group the epochs follow one another without a gap,
        each shuffled; groups take turns by their size."""
        rng = random.Random(f"captions-{self._settings.seed}-{step}")
        coin = random.Random(f"flips-{self._settings.seed}-{step}")
        era, place = divmod(step, len(self._turns))
        group, turn = self._turns[place]
        length = len(self._groups[group])
        first = (era * length + turn) * self._size
        chosen = []
        for position in range(first, first + self._size):
            epoch, spot = divmod(position, length)
            image = self._order(group, epoch)[spot]
            flipped = self._settings.flip and coin.random() < 0.5
            chosen.append(Sample(image, self._caption(self._images[image].caption, rng), flipped))
        return chosen

    def noise(self, step: int, shape: Sequence[int]) -> Tensor:
        """Normal noise; with a noise offset each channel is shifted as a whole (Guttenberg 2023), with
        multi-resolution noise coarser noise is laid over it (Whitaker 2023)."""
        noise = torch.randn(tuple(shape), generator=self._generator("noise", step), device=self._device)
        if self._settings.noise_offset > 0:
            shift = torch.randn(
                *shape[:2], 1, 1, generator=self._generator("offset", step), device=self._device
            )
            noise += self._settings.noise_offset * shift
        if self._settings.multires_noise > 0:
            noise = self._multires(noise, step)
        return noise

    def positions(self, step: int) -> Tensor:
        """How far each sample is noised, in 0..1: uniform, and spread evenly over the step, which steadies it."""
        generator = self._generator("positions", step)
        places = torch.randperm(self._size, generator=generator, device=self._device) + torch.rand(
            self._size, generator=generator, device=self._device
        )
        return places / self._size

    def _multires(self, noise: Tensor, step: int) -> Tensor:
        """Noise of ever coarser grain laid over noise, as sd-scripts does it (`pyramid_noise_like`): level i has 1/r^i of
        the size for an r between 2 and 4, and weighs discount^i; level 0 is as fine as the noise itself. The sum has a
        standard deviation of 1."""
        generator = self._generator("multires", step)
        rng = random.Random(f"multires-{self._settings.seed}-{step}")
        height, width = noise.shape[-2:]
        mixed = noise.clone()
        for level in range(_LEVELS):
            factor = rng.uniform(2, 4) ** level
            size = max(1, int(height / factor)), max(1, int(width / factor))
            coarse = torch.randn(*noise.shape[:2], *size, generator=generator, device=self._device)
            weight = self._settings.multires_noise**level
            mixed += weight * functional.interpolate(coarse, (height, width), mode="bilinear")
            if 1 in size:
                break
        return mixed / mixed.std()

    def _shuffled(self, group: int, epoch: int) -> list[int]:
        order = list(self._groups[group])
        purpose = f"order-{self._settings.seed}-{epoch}" + (f"-{group}" if group else "")
        random.Random(purpose).shuffle(order)
        return order

    def _caption(self, caption: str, rng: random.Random) -> str:
        if rng.random() < self._settings.caption_dropout:
            return ""
        return (
            shuffle_tags(caption, self._settings.keep_tokens, rng) if self._settings.shuffle_tags else caption
        )

    def _generator(self, purpose: str, step: int) -> torch.Generator:
        return torch.Generator(self._device).manual_seed(derive_seed(self._settings.seed, purpose, step))


def _turns(sizes: Sequence[int]) -> list[tuple[int, int]]:
    """Which group each step of an era draws from, and its how-manieth turn that is: group g has as many turns as
    samples, spread evenly, so that in an era every sample comes equally often."""
    places = [((turn + 0.5) / size, group, turn) for group, size in enumerate(sizes) for turn in range(size)]
    return [(group, turn) for _, group, turn in sorted(places)]


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
