"""Has torch compile the blocks that a transformer repeats: what a block computes between its matrix products becomes a few
kernels that read and write memory once. A block is compiled once for all its like, forward and backward, for which its LoRA
must be peft's own modules: the fused form (`fused`) adds to gradients on its way back, which no compiler follows. Where
there is no compiler, where it fails or gives something else, the training goes on as usual, fused. Only training steps are
compiled: sample pictures and the validation loss have shapes that would each take another minute."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lora_foundry.domain.sections import TrainSection
from lora_foundry.families._shared.cpu_layers import compute_by
from lora_foundry.families._shared.family import Batch, FamilyModel
from lora_foundry.families._shared.quantised import packing_of, repeated_blocks
from lora_foundry.trainer.cuda_graphs import added, are_alike, shapes
from lora_foundry.trainer.memory import is_out_of_memory

_BACKEND = "inductor"
# Of one kind of block: for shapes, for whether what comes in learns, and for both in a form for all lengths. Beyond that
# torch computes without a word as if nothing were compiled.
_VARIANTS = 64
_COMPARED = 6  # shapes whose first step is also computed as usual, and compared
# How far compiled gradients may be from those computed as usual, as a share of their norm. A compiled block rounds less often
# to 16 bits (eight of Klein's: 0.005 away); a wrong one is wrong by all of it.
_APART = 0.1
_log = logging.getLogger(__name__)


def obstacle(settings: TrainSection, model: FamilyModel) -> str:
    """Why a training's blocks are not to be compiled; nothing where they can be. With other forms of what learns, or weights
    that come and go, nobody has tried it."""
    for there, words in (
        (settings.network != "lora", 'it is for train.network = "lora"'),
        (settings.text_encoder_rate > 0, "text encoders learn too"),
        (settings.streamed > 0, "blocks of the base are streamed"),
        (packing_of(settings) is not None, "the base is quantised"),
        (model.recordable or not repeated_blocks(model.network), "the base is no transformer"),
    ):
        if there:
            return words
    return ""


def can_compile(settings: TrainSection, model: FamilyModel) -> bool:
    """Whether the blocks are to be compiled and can be."""
    return settings.compile_blocks and not obstacle(settings, model)


class Compiled:
    """`compute` with compiled blocks of `network`: the same result, and the same added to `gradients`, which are all that it
    changes, but for rounding. `instead` is called once where that cannot be, before all is computed as usual."""

    def __init__(
        self,
        compute: Callable[[Batch], Tensor],
        network: nn.Module,
        gradients: Sequence[Tensor],
        instead: Callable[[], object],
    ) -> None:
        self._compute, self._gradients, self._instead = compute, gradients, instead
        self._blocks: list[Any] = list(repeated_blocks(network).values())
        self._usual = [block.forward for block in self._blocks]
        self._forwards: list[Any] = []
        self._compared: set[object] = set()
        self._able = True

    def __call__(self, batch: Batch) -> Tensor:
        """See `step.ForwardBackward`."""
        if not self._able:
            return self._compute(batch)
        before, key = [each.clone() for each in self._gradients], shapes(batch)
        found: list[Tensor] = []
        try:
            with self._compiling():
                loss = self._compute(batch)
            if key in self._compared or len(self._compared) >= _COMPARED:
                return loss
            found = [loss, *added(self._gradients, before)]
        except Exception as error:  # a compiler may fail in any way, and in a block's first backward pass too
            if isinstance(error, RuntimeError) and is_out_of_memory(error):
                raise
            first = (
                str(error).strip().split("\n\n", maxsplit=1)[0]
            )  # after it torch says how to search its compiler
            self._give_up(" ".join(f"{type(error).__name__}: {first}".split())[:200])
        # Not in the handler, whose error holds what the attempt had made.
        for gradient, value in zip(self._gradients, before, strict=True):
            gradient.copy_(value)
        loss = self._compute(batch)
        usual = [loss, *added(self._gradients, before)]
        # What is too large for fp16, as first steps may be, can be compared with nothing.
        if found and all(bool(each.isfinite().all()) for each in usual):
            self._compared.add(key)
            if not are_alike(found, usual, _APART):
                self._give_up("they gave other gradients than computing as usual")
        return loss

    @contextmanager
    def _compiling(self) -> Iterator[None]:
        """The blocks compute compiled while this lasts; what compiles does so when it is first called."""
        from torch._dynamo import config

        with config.patch(recompile_limit=_VARIANTS), warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"torch\.")  # of what its compiler does with gradients
            if not self._forwards:
                # A second shape is compiled for all lengths of what varies, and a third then not at all.
                self._forwards = [torch.compile(usual, backend=_BACKEND) for usual in self._usual]
            for block, forward in zip(self._blocks, self._forwards, strict=True):
                compute_by(block, forward)
            try:
                yield
            finally:
                for block, usual in zip(self._blocks, self._usual, strict=True):
                    compute_by(block, usual)

    def _give_up(self, why: str) -> None:
        _log.warning("The base's blocks are not compiled but computed as usual: %s.", why)
        self._able = False
        self._forwards.clear()
        self._instead()
