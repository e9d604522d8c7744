"""What the steps are made of: the pictures by bucket size, those held out, everything random about a step, and the
micro-batches whose gradients make one."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from lora_foundry.domain.sections import TrainSection
from lora_foundry.errors import InputError
from lora_foundry.families._shared.family import Batch
from lora_foundry.ports import TrainingImage
from lora_foundry.trainer.caches import CaptionCache
from lora_foundry.trainer.images import BucketSize, bucket_size, commonest_bucket_size, read_mask

_LEVELS = 6  # of multi-resolution noise, as in sd-scripts


class Sample(NamedTuple):
    """One member of a step's batch: which picture, under which caption, and whether left is right."""

    image: int
    caption: str
    flipped: bool = False


class NoiseSampler:
    """Everything random about an optimizer step: its pictures and captions, its noise and its timesteps, for all of its
    micro-batches together, so that how a step is cut into them changes nothing. All of it is derived from the seed and
    the step's number: nothing is carried from step to step, so that a training that was stopped and goes on draws
    exactly what an undisturbed one draws, and no generator's state is kept.

    groups: the pictures (by index) of each bucket size; a step draws from one group. On CUDA noise and timesteps are
    drawn on the device, where they are used.
    """

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
        """The samples of step `step` (counted from 0): within a group the epochs follow one another without a gap,
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

    def captions(self, steps: int) -> list[str]:
        """Every caption of the first `steps` steps, shuffled as they are there, each once."""
        found = (sample.caption for step in range(steps) for sample in self.samples(step))
        return list(dict.fromkeys(found))

    def never_shown(self, steps: int) -> int:
        """How many pictures no step of a training of so many shows."""
        turns = Counter(group for group, _ in self._turns[:steps])
        shown = {
            image for group, count in turns.items() for image in self._order(group, 0)[: count * self._size]
        }
        return len({image for group in self._groups for image in group} - shown)

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

    def timesteps(self, step: int) -> Tensor:
        """How far each sample is noised (n,), in 0..1: uniform, and spread evenly over the step, which steadies it. The
        family turns them into timesteps of its own schedule."""
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


class TrainingDataset:
    """Gives the batches of each step. `latents` gives a picture's latent (c, h, w) by its index and whether it is
    flipped; `bucket_sizes` are those of the pictures, by index."""

    def __init__(
        self,
        sampler: NoiseSampler,
        images: Sequence[TrainingImage],
        settings: TrainSection,
        latents: Callable[[tuple[int, bool]], Tensor],
        captions: CaptionCache,
        bucket_sizes: Sequence[BucketSize],
    ) -> None:
        self.latents, self.captions, self.bucket_sizes = latents, captions, bucket_sizes
        self._sampler, self._images, self._settings = sampler, images, settings
        self._masks: dict[int, Tensor] = {}

    def never_shown(self, steps: int) -> int:
        """See NoiseSampler."""
        return self._sampler.never_shown(steps)

    def micro_batches(self, step: int) -> Iterator[Batch]:
        """The samples of step `step` (counted from 0), `batch_size` at a time. Each is made when it is asked for: where
        text encoders learn, its condition belongs to the backward pass that comes next."""
        samples = self._sampler.samples(step)
        latents = torch.stack([self.latents((sample.image, sample.flipped)) for sample in samples])
        noise, timesteps = self._sampler.noise(step, latents.shape), self._sampler.timesteps(step)
        weights, masks = self._weights(samples), self._stack_masks(samples, latents)
        for first in range(0, len(samples), self._settings.batch_size):
            part = slice(first, first + self._settings.batch_size)
            yield Batch(
                latents[part],
                self.captions.batch([sample.caption for sample in samples[part]]),
                noise[part],
                timesteps[part],
                None if masks is None else masks[part],
                None if weights is None else weights[part],
            )

    def mask(self, index: int, latent: Tensor, flipped: bool = False) -> Tensor | None:
        """What counts of a picture, at its latent's size (1, h, w); None where all of it does."""
        image = self._images[index]
        if self._settings.mask == "none" or image.mask is None:
            return None
        if index not in self._masks:
            shown = read_mask(image.mask, self.bucket_sizes[index], alpha=self._settings.mask == "alpha")
            size = (int(latent.shape[-2]), int(latent.shape[-1]))
            self._masks[index] = functional.interpolate(shown[None], size, mode="area")[0]
        return self._masks[index].flip(-1) if flipped else self._masks[index]

    def _weights(self, samples: Sequence[Sample]) -> Tensor | None:
        if not any(image.regular for image in self._images):
            return None
        weight = self._settings.regularisation_weight
        return torch.tensor([weight if self._images[sample.image].regular else 1.0 for sample in samples])

    def _stack_masks(self, samples: Sequence[Sample], latents: Tensor) -> Tensor | None:
        pairs = zip(samples, latents, strict=True)
        masks = [self.mask(sample.image, latent, sample.flipped) for sample, latent in pairs]
        if all(mask is None for mask in masks):
            return None
        whole = torch.ones(1, *latents.shape[-2:])
        return torch.stack([whole if mask is None else mask for mask in masks])


def plan_bucket_sizes(
    sizes: Sequence[tuple[int, int]], settings: TrainSection, multiple: int
) -> list[BucketSize]:
    """The width and height that each picture is brought to: one for all, or with buckets its own shape's."""
    if settings.buckets:
        return [bucket_size(size, settings.resolution, multiple) for size in sizes]
    return [commonest_bucket_size(sizes, settings.resolution, multiple)] * len(sizes)


def group_pictures(bucket_sizes: Sequence[BucketSize], leave_out: Sequence[int]) -> list[list[int]]:
    """The pictures of each bucket size, by index, without those held out."""
    groups: dict[BucketSize, list[int]] = {}
    for index, size in enumerate(bucket_sizes):
        if index not in leave_out:
            groups.setdefault(size, []).append(index)
    return [groups[size] for size in sorted(groups)]


def hold_out(images: Sequence[TrainingImage], settings: TrainSection) -> list[int]:
    """The pictures that only the validation sees, by index. Raises InputError where none would be left to learn."""
    if settings.validation == 0:
        return []
    own = [index for index, image in enumerate(images) if not image.regular]
    count = max(1, round(len(own) * settings.validation))
    if count >= len(own):
        raise InputError(
            f"train.validation holds out {count} of {len(own)} pictures and leaves none to learn from; set it to 0."
        )
    return sorted(random.Random(f"validation-{settings.seed}").sample(own, count))


def _turns(sizes: Sequence[int]) -> list[tuple[int, int]]:
    """Which group each step of an era draws from, and its how-manieth turn that is: group g has as many turns as
    samples, spread evenly, so that in an era every sample comes equally often. Each group's first turn is among the
    first steps: a short training ends within an era, and the picture with a shape of its own is to be seen even there."""
    places = [(turn / size, group, turn) for group, size in enumerate(sizes) for turn in range(size)]
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
