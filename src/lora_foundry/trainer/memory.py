"""How a training is fitted to a GPU's memory, and what it gives up when the memory runs out after all. First what changes
nothing of the result: batches computed in parts, text encoders let go of, gradient checkpointing, blocks streamed. Only
where the computer's memory does not hold what would be streamed, or the GPU can fetch nothing, the base is quantised. The
pictures that make one optimizer step stay as many and the optimizer stays the one that was chosen."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from lora_foundry.domain.sections import TrainSection
from lora_foundry.families._shared.inspect import Base
from lora_foundry.families._shared.memory import Means, training_memory, waiting_memory

_GIB = 1024**3
CARDS = {"8gb": 8.0, "12gb": 12.0, "16gb": 16.0, "24gb": 24.0}
RESERVE = 1.0  # GiB of a card that the desktop and the driver take
# How often over the estimate of a batch in parts must fit: estimates hold within a tenth, a driver that spills into the
# computer's memory makes a step many times slower, and gradient checkpointing is there instead.
SURE = 1.1


def fit(settings: TrainSection, base: Base, free: float | None, ways: Means) -> tuple[TrainSection, str]:
    """The settings for `free` GiB of memory, and what was changed, in words; unchanged for None (a CPU). `ways` says what
    the machine can do beside computing less at once.

    Changed is one thing after another until the estimate fits; where nothing suffices, the words say so.
    """
    if settings.memory in CARDS:
        free = CARDS[settings.memory] - RESERVE
    if free is None or settings.memory == "as_set":
        return settings, ""
    fitted = settings
    if training_memory(base, settings) / _GIB > free:
        sure = (part for part in _in_parts(settings) if SURE * training_memory(base, part) / _GIB <= free)
        fitted = next(sure, settings)
    while (needed := training_memory(base, fitted) / _GIB) > free:
        smaller = _computed_less_at_once(fitted)
        if smaller is None:
            break
        fitted = smaller
    if needed > free:
        fitted = min(
            (fitted, *_kept_elsewhere(fitted, base, free, ways)), key=lambda each: training_memory(base, each)
        )
        needed = training_memory(base, fitted) / _GIB
    words = difference(settings, fitted)
    if needed > free:
        short = f"{needed:.1f} GiB are needed by the estimate, and {free:.1f} GiB are free"
        words = ", ".join(filter(None, (words, short)))
    elif words:
        words += f" (about {needed:.1f} of {free:.1f} GiB)"
    return fitted, words


def step_down(settings: TrainSection, base: Base, ways: Means) -> TrainSection | None:
    """The settings that take less memory, where the estimate was wrong: what changes nothing of the result first. None
    where nothing is left to give up."""
    if smaller := _computed_less_at_once(settings):
        return smaller
    whole = settings.model_copy(update={"streamed": 1.0})
    if ways.blocks and settings.streamed < 1 and waiting_memory(base, whole) <= ways.waiting:
        return whole
    if packing := next(iter(_fewer_bits(settings, ways)), None):
        return settings.model_copy(update={"quantise": packing})
    return None


def _in_parts(settings: TrainSection) -> Iterator[TrainSection]:
    """What computes nothing twice: the batch in ever smaller parts, then the same with captions encoded beforehand, which
    takes disk space."""
    for whole in (settings, _with_captions_first(settings)):
        part = whole
        while part is not None:
            yield part
            part = _smaller_batch(part)


def _computed_less_at_once(settings: TrainSection) -> TrainSection | None:
    """Gradient checkpointing; then captions encoded beforehand, so that text encoders need not stay; then half the batch
    twice as often."""
    if not settings.gradient_checkpointing:
        return settings.model_copy(update={"gradient_checkpointing": True})
    return _with_captions_first(settings) or _smaller_batch(settings)


def _with_captions_first(settings: TrainSection) -> TrainSection | None:
    if settings.shuffle_tags and settings.text_encoder_rate == 0 and not settings.cache_captions:
        return settings.model_copy(update={"cache_captions": True})
    return None


def _smaller_batch(settings: TrainSection) -> TrainSection | None:
    """A part of the batch as many times as often; None for a batch of one."""
    size = settings.batch_size
    if size == 1:
        return None
    divisor = next((each for each in (2, 3, 5, 7) if size % each == 0), size)
    return settings.model_copy(
        update={"batch_size": size // divisor, "accumulation": settings.accumulation * divisor}
    )


def _kept_elsewhere(settings: TrainSection, base: Base, free: float, ways: Means) -> Iterator[TrainSection]:
    """As few blocks streamed as suffice; where streaming all does not, or the computer's memory does not hold them, the same
    with a base of fewer bits. Ends with the first that fits."""
    for packing in (settings.quantise, *_fewer_bits(settings, ways)):
        for count in range(ways.blocks + 1):
            share = count / ways.blocks if count else settings.streamed
            candidate = settings.model_copy(update={"quantise": packing, "streamed": share})
            if waiting_memory(base, candidate) > ways.waiting:
                break
            yield candidate
            if training_memory(base, candidate) / _GIB <= free:
                return


def _fewer_bits(settings: TrainSection, ways: Means) -> tuple[str, ...]:
    """The ways of packing a base into fewer bits than it has now."""
    if settings.quantise in ways.packings:
        return ways.packings[ways.packings.index(settings.quantise) + 1 :]
    return ways.packings


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
    words = {
        "gradient_checkpointing": "gradient checkpointing",
        "cache_captions": "captions encoded beforehand",
        "batch_size": f"batches of {after.batch_size} in place of {before.batch_size}",
        "streamed": f"{after.streamed:.0%} of the blocks streamed from the computer's memory",
        "quantise": f"the base in {after.quantise}",
    }
    return ", ".join(each for name, each in words.items() if getattr(before, name) != getattr(after, name))


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
