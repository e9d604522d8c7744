"""How many steps there are, how the learning rate moves and after which steps an export is kept, as plain functions."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lora_foundry.domain.sections import TrainSection
from lora_foundry.ports import TrainingImage


def total_steps(settings: TrainSection, images: Sequence[TrainingImage]) -> int:
    """Optimizer steps: `steps`, or as many as take all pictures x repeats x epochs, rounded up."""
    samples = sum(image.repeats for image in images) * settings.epochs
    return settings.steps or math.ceil(samples / settings.samples_per_step)


def steps_per_epoch(settings: TrainSection, images: Sequence[TrainingImage]) -> float:
    """How many optimizer steps one pass over the set takes."""
    return sum(image.repeats for image in images) / settings.samples_per_step


def rate_factor(settings: TrainSection, step: int, total: int) -> float:
    """The learning rate of step `step` (counted from 0) as a share of the peak.

    The warm-up rises linearly and takes at most a quarter of the run; a cosine then falls to zero, and starts
    again as often as `restarts` says.
    """
    warmup = min(settings.warmup_steps, total // 4)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if settings.lr_schedule == "constant":
        return 1.0
    progress = (step - warmup) / max(1, total - warmup)
    cycles = settings.restarts if settings.lr_schedule == "cosine_with_restarts" else 1
    return 0.5 * (1 + math.cos(math.pi * ((progress * cycles) % 1.0)))


def planned_exports(settings: TrainSection, total: int, steps_per_epoch: float) -> frozenset[int]:
    """The steps after which an export is kept: the ends of epochs, or `saves` of them evenly over the run; the last
    step is always among them unless nothing is kept at all."""
    every = settings.save_every_epochs * steps_per_epoch
    if every > 0:
        count = int(total / every)
        return frozenset({max(1, round(every * number)) for number in range(1, count + 1)} | {total})
    count = min(settings.saves, total)
    return frozenset(round(total * number / count) for number in range(1, count + 1))
