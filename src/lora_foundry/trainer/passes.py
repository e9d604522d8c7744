"""Forward and backward pass of one batch: what a step does most of its time, cut out so that it can be computed as it
stands or recorded once and played back (`training.graphs`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from lora_foundry.families._shared.family import FamilyModel
from lora_foundry.families._shared.prompts import Condition


class Part(NamedTuple):
    """One batch of a step's samples: latents and noise (n, c, h, w), positions (n,) in 0..1, masks (n, 1, h, w) and
    weights (n,) where there are any."""

    latents: Tensor
    condition: Condition
    noise: Tensor
    positions: Tensor
    mask: Tensor | None
    weights: Tensor | None


@dataclass(frozen=True)
class Passes:
    """Adds a batch's gradients to those there are; `samples` are those of a whole step, whose mean loss is learned."""

    model: FamilyModel
    scaler: torch.amp.GradScaler
    samples: int

    def __call__(self, part: Part) -> Tensor:
        """The batch's share of the step's mean loss, on the device."""
        each = self.model.losses(part.latents, part.condition, part.noise, part.positions, part.mask)
        if part.weights is not None:
            each = each * part.weights.to(each.device, non_blocking=True)
        loss = each.sum() / self.samples
        torch.autograd.backward(self.scaler.scale(loss))
        return loss.detach()
