"""LoHa and LoKr with the lycoris-lora library: its modules stand in for the frozen ones' forward, and their weights
have the names under which ComfyUI and A1111 read them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib import import_module
from typing import Any

import torch
from torch import nn

from lora_foundry.domain.sections import TrainSection
from lora_foundry.extras import missing_package
from lora_foundry.families._shared.targets import Target
from lora_foundry.trainer.adapter import Piece, size_of


def attach(
    network: nn.Module, part: str, modules: Sequence[str], settings: TrainSection, generator: torch.Generator
) -> Iterator[tuple[Piece, nn.Module]]:
    """Puts a LyCORIS module on each of `modules` and yields what it trains. Raises MissingExtraError."""
    kind = _kind(settings.network)
    layers = dict(network.named_modules())
    for path in modules:
        rank, alpha = size_of(layers[path], settings)
        extra = {"factor": settings.lokr_factor} if settings.network == "lokr" else {}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(torch.randint(2**62, (1,), generator=generator)))
            module: Any = kind(
                path.replace(".", "_"), layers[path], lora_dim=rank, alpha=alpha, bypass_mode=True, **extra
            )
        module.to(next(layers[path].parameters()).device)
        module.apply_to()
        tensors = {name: tensor for name, tensor in module.named_parameters() if tensor.requires_grad}
        yield Piece(Target(part, path), tensors, float(module.alpha)), module


def _kind(name: str) -> Any:
    try:
        return getattr(
            import_module(f"lycoris.modules.{name}"), {"loha": "LohaModule", "lokr": "LokrModule"}[name]
        )
    except ImportError as error:
        raise missing_package(f'train.network = "{name}"', error) from error
