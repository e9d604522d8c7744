"""One optimizer step: the forward and backward passes of its micro-batches, then gradients clipped and weights moved.
Forward and backward are cut out as `ForwardBackward`, so that they can be computed as they stand or captured once and
replayed (`cuda_graphs`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from lora_foundry.domain.sections import TrainSection
from lora_foundry.families._shared.family import Batch, FamilyModel
from lora_foundry.trainer.data import TrainingDataset
from lora_foundry.trainer.optimizers import set_rate
from lora_foundry.trainer.schedule import rate_factor
from lora_foundry.trainer.state import TrainState


@dataclass(frozen=True)
class ForwardBackward:
    """Adds a micro-batch's gradients to those there are; `samples` are those of a whole step, whose mean loss is
    learned."""

    model: FamilyModel
    scaler: torch.amp.GradScaler
    samples: int

    def __call__(self, batch: Batch) -> Tensor:
        """The micro-batch's share of the step's mean loss, on the device."""
        each = self.model.losses(batch)
        if batch.weights is not None:
            each = each * batch.weights.to(each.device, non_blocking=True)
        loss = each.sum() / self.samples
        torch.autograd.backward(self.scaler.scale(loss))
        return loss.detach()


class StepResult(NamedTuple):
    """What a step gave, its numbers still on the device: `step` counts from 1, `norm` is the gradients' before they
    were clipped, `rate` the denoiser's learning rate."""

    step: int
    loss: Tensor
    norm: Tensor
    rate: float


@dataclass(frozen=True)
class OptimizerStep:
    """Takes step after step of a training of `total` steps."""

    settings: TrainSection
    total: int
    dataset: TrainingDataset
    forward_backward: Callable[[Batch], Tensor]
    state: TrainState

    def __call__(self, step: int) -> StepResult:
        """Takes step `step`, counted from 0."""
        state, optimizer, scaler = self.state, self.state.optimizer, self.state.scaler
        factor = rate_factor(self.settings, step, self.total)
        set_rate(optimizer, factor)
        losses = []
        for batch in self.dataset.micro_batches(step):
            losses.append(self.forward_backward(batch))
            state.adapter.gradients_added()
        scaler.unscale_(optimizer)
        limit = self.settings.max_grad_norm or float("inf")
        norm = torch.nn.utils.clip_grad_norm_(state.adapter.buffers.values(), limit)
        scaler.step(optimizer)
        scaler.update()
        state.adapter.zero_gradients()
        if self.settings.max_norm > 0:
            state.adapter.clip_norms(self.settings.max_norm)
        state.adapter.weights_changed()
        if state.ema:
            state.ema.update(step + 1)
        loss = losses[0] if len(losses) == 1 else torch.stack(losses).sum()
        return StepResult(step + 1, loss, norm.detach(), self.settings.learning_rate * factor)
