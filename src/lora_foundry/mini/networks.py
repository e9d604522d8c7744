"""The small networks behind the miniature model's instruments. They stand apart from the instruments so
that asking where the model lies never imports torch, and so that the training scripts build the very
same nets.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import nn


def _convolution(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.SiLU(),
    )


class ResidualBlock(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = _convolution(channels, channels, 1)
        self.second = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = nn.functional.silu(x + self.second(self.first(x)))
        return result


def trunk(widths: Sequence[int]) -> nn.Sequential:
    """A 64 px picture to an 8x8 map of features: full size, then three halvings."""
    stages: list[nn.Module] = [_convolution(3, widths[0], 1)]
    for inputs, outputs in pairwise(widths):
        stages += [_convolution(inputs, outputs, 2), ResidualBlock(outputs)]
    return nn.Sequential(*stages)


class AttentionPool(nn.Module):
    """Several weighted averages over the map, each with its learned place to look, beside the plain one."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.score = nn.Conv2d(channels, heads, 1)

    def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        weights = self.score(features).flatten(2).softmax(dim=2)
        flat = features.flatten(2)
        return torch.einsum("bhs,bcs->bhc", weights, flat), flat.mean(dim=2)


class AttributeNetwork(nn.Module):
    """One trunk, one place to look and one linear head an attribute."""

    def __init__(self, sizes: dict[str, int], widths: Sequence[int]) -> None:
        super().__init__()
        self.names = list(sizes)
        self.trunk = trunk(widths)
        self.pool = AttentionPool(widths[-1], len(sizes))
        self.heads = nn.ModuleList(nn.Linear(2 * widths[-1], size) for size in sizes.values())

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> AttributeNetwork:
        sizes = {name: len(values) for name, values in config["attributes"].items()}
        return cls(sizes, config["widths"])

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        pooled, mean = self.pool(self.trunk(x))
        return {
            name: head(torch.cat([pooled[:, place], mean], dim=1))
            for place, (name, head) in enumerate(zip(self.names, self.heads, strict=True))
        }


class EmbeddingNetwork(nn.Module):
    """The same kind of trunk, ending in one vector of length 1."""

    def __init__(self, dimension: int, widths: Sequence[int], places: int) -> None:
        super().__init__()
        self.trunk = trunk(widths)
        self.pool = AttentionPool(widths[-1], places)
        self.head = nn.Linear((places + 1) * widths[-1], dimension)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> EmbeddingNetwork:
        return cls(config["dimension"], config["widths"], config["places"])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pooled, mean = self.pool(self.trunk(x))
        vector = self.head(torch.cat([pooled.flatten(1), mean], dim=1))
        return nn.functional.normalize(vector, dim=1)
