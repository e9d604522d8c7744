"""Plays a batch's passes back on a GPU. A step of Stable Diffusion launches thousands of small kernels, and at small
batches the GPU waits for Python to launch them; a CUDA graph launches all of them at once. One is recorded for each
shape of batch, after a few steps computed as usual; what cannot be recorded goes on as usual."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from lora_foundry.domain.sections import TrainSection
from lora_foundry.families._shared.family import Batch, FamilyModel
from lora_foundry.families._shared.quantised import packing_of

_WARM = 3  # times a shape is computed first: libraries choose their ways and take their memory then
_MOST = 6  # shapes that are recorded: each takes time to record and memory to keep
_log = logging.getLogger(__name__)

Recorder = Callable[[Callable[[], Tensor]], tuple[Callable[[], None], Tensor]]
"""Takes a computation down without doing it; gives what does it, and the tensor that holds its result afterwards."""


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
    """`compute` by playback: the same arguments, the same gradients, the same result."""

    def __init__(self, compute: Callable[[Batch], Tensor], record: Recorder, device: torch.device) -> None:
        self._compute, self._record, self._device = compute, record, device
        self._seen: Counter[object] = Counter()
        self._recordings: dict[object, _Recording] = {}
        self._able = True

    def __call__(self, batch: Batch) -> Tensor:
        """See `step.ForwardBackward`."""
        key = _shapes(batch)
        self._seen[key] += 1
        room = key in self._recordings or len(self._recordings) < _MOST
        if not self._able or not room or self._seen[key] <= _WARM:
            return self._compute(batch)
        if key not in self._recordings and not self._capture(key, batch):
            return self._compute(batch)
        recording = self._recordings[key]
        for kept, new in zip(_tensors(recording.batch), _tensors(batch), strict=True):
            kept.copy_(new, non_blocking=True)
        recording.play()
        return recording.loss.clone()

    def _capture(self, key: object, batch: Batch) -> bool:
        """Records a shape; False where that cannot be done, and from then on all goes as usual."""
        own = _map(batch, lambda tensor: tensor.to(self._device, copy=True))
        try:
            play, loss = self._record(lambda: self._compute(own))
        except RuntimeError as error:
            _log.warning(
                "The training's steps cannot be recorded as CUDA graphs and are computed as usual: %s",
                " ".join(str(error).split())[:200],
            )
            self._able = False
            self._recordings.clear()
            return False
        loss.fill_(float("nan"))  # a recording that is empty would otherwise learn nothing without a word
        self._recordings[key] = _Recording(own, play, loss)
        return True


class CudaRecorder:
    """Records CUDA graphs that share their memory: they are played one after another, and each result is copied."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, compute: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(self._device):  # what is recorded is what the current device is given to do
            usual = torch.cuda.current_stream()
            try:
                with torch.cuda.graph(graph, pool=self._pool):
                    loss = compute()
            finally:
                torch.cuda.set_stream(usual)  # a recording that fails leaves its own stream in place

        def play() -> None:
            with torch.cuda.device(self._device):
                graph.replay()

        return play, loss


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


def _shapes(batch: Batch) -> object:
    """What a recording holds for: the parts there are, and their shapes."""
    there = batch.mask is not None, batch.weights is not None
    return (*there, *batch.condition, *(tuple(tensor.shape) for tensor in _tensors(batch)))
