"""How a training is fitted to a GPU's memory: which batch size it takes and whether gradient checkpointing, and what it
gives up when the memory runs out after all. The pictures that make one optimizer step stay as many and the optimizer
stays the one that was chosen, so that a smaller card learns the same, only slower."""

from __future__ import annotations

import torch

from lora_foundry.domain.sections import TrainSection
from lora_foundry.families._shared.inspect import Base
from lora_foundry.families._shared.memory import training_memory

_GIB = 1024**3
CARDS = {"8gb": 8.0, "12gb": 12.0, "16gb": 16.0, "24gb": 24.0}
RESERVE = 1.0  # GiB of a card that the desktop and the driver take


def fit(settings: TrainSection, base: Base, free: float | None) -> tuple[TrainSection, str]:
    """The settings for `free` GiB of memory, and what was changed, in words; unchanged for None (a CPU).

    Changed, one after another until the estimate fits, is only what does not change the result: activations are
    computed twice instead of kept, and a batch is computed in parts. Where that does not suffice, the words say so.
    """
    if settings.memory in CARDS:
        free = CARDS[settings.memory] - RESERVE
    if free is None or settings.memory == "as_set":
        return settings, ""
    fitted = settings
    while (needed := training_memory(base, fitted) / _GIB) > free:
        smaller = step_down(fitted)
        if smaller is None:
            break
        fitted = smaller
    words = difference(settings, fitted)
    if needed > free:
        short = f"{needed:.1f} GiB are needed by the estimate, and {free:.1f} GiB are free"
        words = ", ".join(filter(None, (words, short)))
    return fitted, words


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


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether an error of torch's means that the device's memory is full; on Apple's GPUs only the words say so."""
    return isinstance(error, torch.OutOfMemoryError) or "MPS backend out of memory" in str(error)


def free_memory(device: torch.device) -> float | None:
    """GiB that are free on `device`, on an Apple GPU of what its driver recommends to take; None where memory is not
    managed (a CPU)."""
    if device.type == "mps":
        return (torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()) / _GIB
    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    return free / _GIB


def difference(before: TrainSection, after: TrainSection) -> str:
    """What was changed, in words; empty for nothing."""
    names = ("batch_size", "accumulation", "gradient_checkpointing")
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
