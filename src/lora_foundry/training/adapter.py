"""The LoRA itself: peft's layers in the frozen network, their weights in fp32 whatever the base computes in,
started from a seed of their own, and addressed by the path of the module they belong to."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

NAME = "default"


class Pair(NamedTuple):
    """The two matrices of one module: down (r, in) and up (out, r); 1x1 convolutions have two more
    dimensions."""

    module: str
    down: nn.Parameter
    up: nn.Parameter


class Adapter:
    """A LoRA on `network`. Its `up` matrices start at zero, so that it changes nothing at first."""

    def __init__(
        self, network: nn.Module, targets: Sequence[str], rank: int, alpha: float, seed: int
    ) -> None:
        from peft import LoraConfig, inject_adapter_in_model

        self.rank, self.alpha = rank, alpha
        config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(targets), init_lora_weights=False)  # type: ignore[arg-type]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            inject_adapter_in_model(config, network, NAME)
        layers = dict(network.named_modules())
        generator = torch.Generator().manual_seed(seed)
        self.pairs = tuple(_start(target, layers[target], generator) for target in targets)

    def parameters(self) -> list[nn.Parameter]:
        """Every trained tensor, in a fixed order."""
        return [tensor for pair in self.pairs for tensor in (pair.down, pair.up)]

    def count(self) -> int:
        """How many numbers are trained."""
        return sum(parameter.numel() for parameter in self.parameters())

    def state(self) -> dict[str, Tensor]:
        """Copies of the weights by name, on the CPU."""
        named = {
            f"{pair.module}.{side}": tensor
            for pair in self.pairs
            for side, tensor in (("down", pair.down), ("up", pair.up))
        }
        return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in named.items()}

    @torch.no_grad()
    def load(self, state: dict[str, Tensor]) -> None:
        """Puts back what `state` gave. Raises KeyError for a missing module."""
        for pair in self.pairs:
            pair.down.copy_(state[f"{pair.module}.down"])
            pair.up.copy_(state[f"{pair.module}.up"])

    def is_finite(self) -> bool:
        """Whether no weight is NaN or infinite."""
        return all(bool(torch.isfinite(parameter).all()) for parameter in self.parameters())


class _CastLinear(nn.Linear):
    """fp32 weights that compute in whatever type comes in: casting them is cheap, casting the activations is
    not."""

    def forward(self, input: Tensor) -> Tensor:
        return functional.linear(input, self.weight.to(input.dtype))


class _CastConv2d(nn.Conv2d):
    """The same for 1x1 convolutions."""

    def forward(self, input: Tensor) -> Tensor:
        return functional.conv2d(input, self.weight.to(input.dtype))


def _start(target: str, layer: Any, generator: torch.Generator) -> Pair:
    """fp32 weights of one module: down uniform as kohya and peft start it, up zero."""
    layer.cast_input_dtype_enabled = False  # peft would turn every activation into fp32 and back
    sides: list[nn.Parameter] = []
    for side in ("lora_A", "lora_B"):
        part = getattr(layer, side)[NAME]
        part.__class__ = _CastConv2d if isinstance(part, nn.Conv2d) else _CastLinear
        weight = torch.zeros(part.weight.shape)
        if side == "lora_A":
            nn.init.kaiming_uniform_(weight, a=math.sqrt(5), generator=generator)
        part.weight = nn.Parameter(weight.to(part.weight.device))
        sides.append(part.weight)
    return Pair(target, *sides)
