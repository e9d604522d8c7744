"""What the steps are made of: which picture has which shape, which are held out, and the tensors of one optimizer
step."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from lora_foundry.domain.sections import TrainSection
from lora_foundry.errors import InputError
from lora_foundry.ports import TrainingImage
from lora_foundry.trainer.caches import CaptionCache, choose_frame, fit_frame, read_mask
from lora_foundry.trainer.draws import Draws, Sample

Frame = tuple[int, int]


class Batch(NamedTuple):
    """All samples of one optimizer step, on the CPU: latents and noise (n, c, h, w), positions (n,) in 0..1; weights
    (n,) and masks (n, 1, h, w) only where the settings ask for them."""

    samples: list[Sample]
    latents: Tensor
    noise: Tensor
    positions: Tensor
    weights: Tensor | None
    masks: Tensor | None


class Material:
    """Makes the batch of a step. `latents` gives a picture's latent (c, h, w) by its index and whether it is
    flipped."""

    def __init__(
        self,
        draws: Draws,
        images: Sequence[TrainingImage],
        settings: TrainSection,
        latents: Callable[[tuple[int, bool]], Tensor],
        captions: CaptionCache,
        frames: Sequence[Frame],
    ) -> None:
        self.draws, self.latents, self.captions, self.frames = draws, latents, captions, frames
        self._images, self._settings = images, settings
        self._masks: dict[int, Tensor] = {}

    def batch(self, step: int) -> Batch:
        """The batch of step `step`, counted from 0."""
        samples = self.draws.samples(step)
        latents = torch.stack([self.latents((sample.image, sample.flipped)) for sample in samples])
        return Batch(
            samples,
            latents,
            self.draws.noise(step, latents.shape),
            self.draws.positions(step),
            self._weights(samples),
            self._stack_masks(samples, latents),
        )

    def mask(self, index: int, latent: Tensor, flipped: bool = False) -> Tensor | None:
        """What counts of a picture, at its latent's size (1, h, w); None where all of it does."""
        image = self._images[index]
        if self._settings.mask == "none" or image.mask is None:
            return None
        if index not in self._masks:
            shown = read_mask(image.mask, self.frames[index], alpha=self._settings.mask == "alpha")
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


def plan_frames(sizes: Sequence[Frame], settings: TrainSection, multiple: int) -> list[Frame]:
    """The width and height that each picture is brought to: one for all, or with buckets its own shape's."""
    if settings.buckets:
        return [fit_frame(size, settings.resolution, multiple) for size in sizes]
    return [choose_frame(sizes, settings.resolution, multiple)] * len(sizes)


def group_pictures(frames: Sequence[Frame], leave_out: Sequence[int]) -> list[list[int]]:
    """The pictures of each shape, by index, without those held out."""
    groups: dict[Frame, list[int]] = {}
    for index, frame in enumerate(frames):
        if index not in leave_out:
            groups.setdefault(frame, []).append(index)
    return [groups[frame] for frame in sorted(groups)]


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
