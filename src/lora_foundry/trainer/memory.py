"""How a training is fitted to a GPU's memory: which of batch size, gradient checkpointing and 8-bit optimizer it takes,
and what it gives up when the memory runs out after all. The pictures that make one optimizer step stay as many, so
that a smaller card learns the same, only slower."""

from __future__ import annotations

from typing import NamedTuple

import torch

from lora_foundry.domain.sections import TrainSection

_GIB = 1024**3
CARDS = {"8gb": 8.0, "12gb": 12.0, "16gb": 16.0, "24gb": 24.0}
_RESERVE = 1.0  # GiB of a card that the desktop and the driver take


class Need(NamedTuple):
    """What a family takes, in GiB: its frozen weights in half precision, and the activations of one picture of 512
    pixels with and without gradient checkpointing. Estimates (activations from the floor measured for SD1.5, the
    others by their size); running out of memory is caught all the same."""

    weights: float
    activations: float
    checkpointed: float


NEEDS = {
    "sd": Need(1.7, 1.6, 0.5),
    "sdxl": Need(5.2, 3.6, 1.0),
    "z_image": Need(12.0, 6.0, 1.2),
}
_DEFAULT = Need(6.0, 4.0, 1.0)


def fit(settings: TrainSection, family: str, free: float | None) -> tuple[TrainSection, str]:
    """The settings for `free` GiB of memory, and what was changed, in words; unchanged for None (a CPU).

    Gives up, one after another until it fits: keeping activations, the size of a batch, full-precision optimizer
    state.
    """
    if settings.memory in CARDS:
        free = CARDS[settings.memory] - _RESERVE
    if free is None or settings.memory == "as_set":
        return settings, ""
    need = NEEDS.get(family, _DEFAULT)
    fitted = settings
    while estimate(fitted, need) > free and (smaller := step_down(fitted)) is not None:
        fitted = smaller
    if estimate(fitted, need) > free and fitted.optimizer == "adamw":
        fitted = fitted.model_copy(update={"optimizer": "adamw8bit"})
    return fitted, difference(settings, fitted)


def estimate(settings: TrainSection, need: Need) -> float:
    """GiB that a training takes, roughly."""
    area = (settings.resolution / 512) ** 2
    width = 2.0 if settings.precision == "fp32" else 1.0
    picture = need.checkpointed if settings.gradient_checkpointing else need.activations
    learned = 0.004 * settings.rank * (0.5 if settings.optimizer == "adamw8bit" else 1.0)
    return need.weights * width + picture * width * area * settings.batch_size + learned


def step_down(settings: TrainSection) -> TrainSection | None:
    """The settings that take less memory and learn the same: gradient checkpointing first, then half the batch twice
    as often. None where nothing is left to give up."""
    if not settings.gradient_checkpointing:
        return settings.model_copy(update={"gradient_checkpointing": True})
    for divisor in (2, 3, 5, 7):
        if settings.batch_size % divisor == 0:
            return settings.model_copy(
                update={
                    "batch_size": settings.batch_size // divisor,
                    "accumulation": settings.accumulation * divisor,
                }
            )
    if settings.batch_size > 1:
        return settings.model_copy(
            update={"batch_size": 1, "accumulation": settings.accumulation * settings.batch_size}
        )
    return None


def free_memory(device: torch.device) -> float | None:
    """GiB that are free on `device`; None where memory is not managed (a CPU)."""
    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    return free / _GIB


def difference(before: TrainSection, after: TrainSection) -> str:
    """What was changed, in words; empty for nothing."""
    names = ("batch_size", "accumulation", "gradient_checkpointing", "optimizer")
    changes = [
        f"{name} {getattr(before, name)} -> {getattr(after, name)}"
        for name in names
        if getattr(before, name) != getattr(after, name)
    ]
    return ", ".join(changes)


class StepWatch:
    """Notices steps that suddenly take many times as long as the ones before: on a GPU that is memory spilling into
    the computer's, which drivers do without a word."""

    FACTOR = 5.0
    _LEARNED, _LEAST_SECONDS = 3, 0.01

    def __init__(self) -> None:
        self._usual: list[float] = []
        self._slow = False

    def observe(self, steps: int, seconds: float) -> str:
        """Takes in that `steps` steps took `seconds`; returns a warning at the first slow ones of a row, else
        nothing."""
        each = seconds / max(1, steps)
        usual = sorted(self._usual)[len(self._usual) // 2] if self._usual else each
        slow = len(self._usual) >= self._LEARNED and each > max(self.FACTOR * usual, self._LEAST_SECONDS)
        first, self._slow = slow and not self._slow, slow
        if not slow:
            self._usual = [*self._usual[-20:], each]
        if not first:
            return ""
        return (
            f"a step takes {each:.2f} s, {each / usual:.0f} times as long as before: the GPU's memory may be spilling "
            "into the computer's; close other programs, or lower train.batch_size"
        )
