"""What the training scripts share: an optimiser, a running average of weights, and checkpoints that are
written aside and renamed. Muon is here because convolution kernels learn about half again as much from
each step when their updates are orthogonalised, and on two cores every step counts; the rest of the
weights get AdamW.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


def orthogonalised(updates: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """The nearest orthogonal matrix to each of a stack, by a quintic Newton-Schulz iteration in bfloat16."""
    a, b, c = NEWTON_SCHULZ
    x = updates.to(torch.bfloat16)
    flipped = x.shape[1] > x.shape[2]
    if flipped:
        x = x.transpose(1, 2)
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.transpose(1, 2)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    if flipped:
        x = x.transpose(1, 2)
    return x.float()


class Muon(torch.optim.Optimizer):
    """Momentum whose update is orthogonalised, scaled so that AdamW's learning rates fit."""

    def __init__(
        self, params: Iterable[nn.Parameter], lr: float, momentum: float = 0.95, decay: float = 0.01
    ) -> None:
        super().__init__(list(params), {"lr": lr, "momentum": momentum, "decay": decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            alike: dict[tuple[int, int], list[nn.Parameter]] = {}
            for weight in group["params"]:
                if weight.grad is not None:
                    alike.setdefault((weight.shape[0], weight[0].numel()), []).append(weight)
            for (rows, columns), weights in alike.items():
                updates = orthogonalised(torch.stack([self._momentum(w, group["momentum"]) for w in weights]))
                for weight, update in zip(weights, updates, strict=True):
                    weight.mul_(1 - group["lr"] * group["decay"])
                    weight.add_(update.view_as(weight), alpha=-group["lr"] * 0.2 * max(rows, columns) ** 0.5)

    def _momentum(self, weight: nn.Parameter, keep: float) -> torch.Tensor:
        """The gradient looked at through Nesterov's momentum, as one matrix."""
        state = self.state[weight]
        if not state:
            state["momentum"] = torch.zeros_like(weight)
        state["momentum"].lerp_(weight.grad, 1 - keep)
        return weight.grad.lerp(state["momentum"], keep).flatten(1)


class Both:
    """Muon for the inner matrices and kernels, AdamW for everything else, stepped as one."""

    def __init__(
        self, module: nn.Module, lr: float, muon: bool, outer: tuple[str, ...] = (), betas=(0.9, 0.99)
    ) -> None:
        inner, rest = [], []
        for name, weight in module.named_parameters():
            matrix = weight.ndim >= 2 and min(weight.shape[0], weight[0].numel()) >= 16
            (inner if muon and matrix and not any(word in name for word in outer) else rest).append(weight)
        self.parts: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(rest, lr=lr, betas=betas, weight_decay=0.01)
        ]
        if inner:
            self.parts.append(Muon(inner, lr=lr))
        self.base = lr

    def set_rate(self, factor: float) -> None:
        """Set every learning rate to `factor` of its base."""
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = self.base * factor

    def step(self) -> None:
        for part in self.parts:
            part.step()
            part.zero_grad(set_to_none=True)

    def state_dict(self) -> list[dict[str, Any]]:
        return [part.state_dict() for part in self.parts]

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        for part, state in zip(self.parts, states, strict=True):
            part.load_state_dict(state)


class Average:
    """An exponential moving average of a module's weights, slow to trust the first steps less."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.count = 0
        self.values = {name: value.detach().clone() for name, value in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        self.count += 1
        keep = min(self.decay, (1 + self.count) / (10 + self.count))
        for name, value in module.state_dict().items():
            if value.is_floating_point():
                self.values[name].lerp_(value, 1 - keep)
            else:
                self.values[name].copy_(value)


def save_whole(content: Any, path: Path) -> None:
    """torch.save aside and rename, so that a checkpoint is whole or absent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f"{path.name}.part{os.getpid()}")
    torch.save(content, aside)
    aside.replace(path)
