"""Plays a batch's passes back on a GPU. A step of Stable Diffusion launches thousands of small kernels, and at small
batches the GPU waits for Python to launch them; a CUDA graph launches all of them at once. One is recorded for each
shape of batch, after a few steps computed as usual, and kept if it gives what computing gives. Where anything speaks
against it, the training goes on as usual: nobody is to notice more of it than speed."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from lora_foundry.domain.sections import TrainSection
from lora_foundry.families._shared.devices import give_memory_back
from lora_foundry.families._shared.family import Batch, FamilyModel
from lora_foundry.families._shared.quantised import packing_of

_WARM = 3  # times a shape is computed first: libraries choose their ways and take their memory then
_MOST = 6  # shapes that are recorded: each takes time to record and memory to keep
# Of what must stay free beside a recording, in its own size: a batch that is computed as usual, and a sample picture.
_ROOM = 1.5
# How far a playback's gradients may be from computed ones, as a share of their norm. The kernels are the same; sums that a GPU
# takes in no fixed order differ by some thousandths in 16 bits, and a wrong recording by all of it.
_APART = 0.02
_log = logging.getLogger(__name__)

Recorder = Callable[[Callable[[], Tensor]], tuple[Callable[[], None], Tensor]]
"""Takes a computation down without doing it; gives what does it, and the tensor that holds its result afterwards. Raises
RuntimeError where that cannot be done."""


class _Recording(NamedTuple):
    batch: Batch
    play: Callable[[], None]
    loss: Tensor


def can_record(settings: TrainSection, model: FamilyModel, device: torch.device) -> bool:
    """Whether a training's passes may be recorded: on CUDA, and where no step asks for anything but tensors of known
    shape. Text encoders that learn see texts of all lengths; checkpointing asks the device for its random state; nobody
    has recorded the unpacking of a quantised base."""
    wanted = settings.cuda_graphs and not settings.gradient_checkpointing and settings.text_encoder_rate == 0
    return wanted and packing_of(settings) is None and device.type == "cuda" and model.recordable


class Recorded:
    """`compute` by playback: the same arguments, the same result, and the same added to `gradients`, which are all that it
    changes. `marker` is a file that is there while a shape is recorded and tried: an attempt that finds the one of an
    earlier attempt records nothing, since that one did not survive it."""

    def __init__(
        self,
        compute: Callable[[Batch], Tensor],
        record: Recorder,
        device: torch.device,
        gradients: Sequence[Tensor],
        marker: Path | None = None,
    ) -> None:
        self._compute, self._record, self._device = compute, record, device
        self._gradients, self._marker = gradients, marker
        self._seen: Counter[object] = Counter()
        self._recordings: dict[object, _Recording] = {}
        self._able = True
        if marker is not None and marker.exists():
            again = f"without {marker} they are tried again"
            self._give_up(f"an earlier attempt in this folder ended while it recorded them ({again})")

    def __call__(self, batch: Batch) -> Tensor:
        """See `step.ForwardBackward`."""
        key = shapes(batch)
        if recording := self._recordings.get(key):
            return _played(recording, batch)
        self._seen[key] += 1
        if not self._able or len(self._recordings) >= _MOST or self._seen[key] <= _WARM:
            return self._compute(batch)
        with self._marked():
            return self._computed_and_recorded(key, batch)

    def _computed_and_recorded(self, key: object, batch: Batch) -> Tensor:
        """Computes as usual what a new recording has played before, and keeps the recording if both are the same."""
        before = [each.clone() for each in self._gradients]
        played: list[Tensor] = []
        why = ""
        try:
            recording = self._capture(batch)
            loss = _played(recording, batch)
            played = [loss, *added(self._gradients, before)]
        except RuntimeError as error:
            why = " ".join(str(error).split())[:200]
        for gradient, value in zip(self._gradients, before, strict=True):
            gradient.copy_(value)
        if not played:
            self._give_up(why)  # not in the handler, whose error holds what the attempt had made
            return self._compute(batch)
        result = self._compute(batch)
        usual = [result, *added(self._gradients, before)]
        if not all(bool(each.isfinite().all()) for each in usual):
            self._seen[key] = 0  # too large for fp16, as first steps may be: nothing to compare with
        elif are_alike(played, usual, _APART):
            self._recordings[key] = recording
        else:
            del recording  # or its memory could not be given back
            self._give_up("a playback gave other gradients than computing")
        return result

    def _capture(self, batch: Batch) -> _Recording:
        own = _map(batch, lambda tensor: tensor.to(self._device, copy=True))
        play, loss = self._record(lambda: self._compute(own))
        loss.fill_(float("nan"))  # a recording that is empty would otherwise have a loss
        return _Recording(own, play, loss)

    def _give_up(self, why: str) -> None:
        """From now on all is computed, and no memory is held for anything else."""
        _log.warning("The training's steps are not recorded as CUDA graphs but computed as usual: %s.", why)
        self._able = False
        self._recordings.clear()
        give_memory_back()

    @contextmanager
    def _marked(self) -> Iterator[None]:
        """The marker stays where this ends in an error, as where it ends in a process's death."""
        if self._marker is not None:
            self._marker.touch()
        yield
        if self._marker is not None:
            self._marker.unlink(missing_ok=True)


class CudaRecorder:
    """Records CUDA graphs that share their memory: they are played one after another, and each result is copied."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, compute: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        graph = torch.cuda.CUDAGraph()
        give_memory_back()
        free = torch.cuda.mem_get_info(self._device)[0]
        with torch.cuda.device(self._device):  # what is recorded is what the current device is given to do
            usual = torch.cuda.current_stream()
            try:
                with torch.cuda.graph(graph, pool=self._pool):
                    loss = compute()
            finally:
                torch.cuda.set_stream(usual)  # a recording that fails leaves its own stream in place
        left = torch.cuda.mem_get_info(self._device)[0]
        if left < _ROOM * (free - left):
            raise RuntimeError(
                f"they would take {(free - left) / 2**30:.1f} GiB of the {free / 2**30:.1f} that are free"
            )

        def play() -> None:
            with torch.cuda.device(self._device):
                graph.replay()

        return play, loss


def _played(recording: _Recording, batch: Batch) -> Tensor:
    for kept, new in zip(_tensors(recording.batch), _tensors(batch), strict=True):
        kept.copy_(new, non_blocking=True)
    recording.play()
    return recording.loss.clone()


def added(gradients: Sequence[Tensor], before: Sequence[Tensor]) -> list[Tensor]:
    """What was added to gradients since they were copied to `before`."""
    return [now - earlier for now, earlier in zip(gradients, before, strict=True)]


def are_alike(played: Sequence[Tensor], usual: Sequence[Tensor], apart: float) -> bool:
    """Whether each tensor is at most that share of its like's norm away from it; NaN is like nothing."""
    pairs = [(one.float(), other.float()) for one, other in zip(played, usual, strict=True)]
    return all(bool((one - other).norm() <= apart * other.norm()) for one, other in pairs)


def _tensors(batch: Batch) -> list[Tensor]:
    given = [
        batch.latents,
        *batch.condition.values(),
        batch.noise,
        batch.timesteps,
        batch.mask,
        batch.weights,
    ]
    return [tensor for tensor in given if tensor is not None]


def _map(batch: Batch, change: Callable[[Tensor], Tensor]) -> Batch:
    optional = [None if tensor is None else change(tensor) for tensor in (batch.mask, batch.weights)]
    condition = {name: change(tensor) for name, tensor in batch.condition.items()}
    return Batch(change(batch.latents), condition, change(batch.noise), change(batch.timesteps), *optional)


def shapes(batch: Batch) -> object:
    """What a recording holds for: the parts there are, and their shapes."""
    there = batch.mask is not None, batch.weights is not None
    return (*there, *batch.condition, *(tuple(tensor.shape) for tensor in _tensors(batch)))
