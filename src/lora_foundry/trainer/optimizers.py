"""The optimizers people choose, behind one function: two groups of weights (denoiser, text encoders) with peak rates
of their own, and the weights each would have exported."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from lora_foundry.domain.sections import TrainSection
from lora_foundry.errors import InputError
from lora_foundry.extras import missing_package
from lora_foundry.families._shared.targets import DENOISER, ENCODERS
from lora_foundry.trainer.lora import Adapter

PEAK = "peak"  # the key of a group's peak rate, beside its current one


def build_optimizer(settings: TrainSection, adapter: Adapter) -> torch.optim.Optimizer:
    """The optimizer that `settings` names, on the adapter's weights. Raises InputError, MissingExtraError."""
    rates = {DENOISER: settings.learning_rate, ENCODERS: settings.text_encoder_rate}
    # What AdamW does to a number depends on no other (with 8-bit moments: on those of its block of 256), so that all can
    # be one tensor; the others look at whole matrices.
    whole = settings.optimizer in {"adamw", "adamw8bit"}
    groups = [
        {"params": [buffer] if whole else adapter.parameters(part), "lr": rates[part], PEAK: rates[part]}
        for part, buffer in adapter.buffers.items()
    ]
    return _build(settings, groups, [tensor.device for tensor in adapter.parameters()])


def set_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Sets every group's learning rate to `factor` of its peak."""
    for group in optimizer.param_groups:
        group["lr"] = group[PEAK] * factor


def exported_state(optimizer: torch.optim.Optimizer, adapter: Adapter) -> dict[str, Tensor]:
    """The weights to export: schedule-free trains at one point and answers with another, all others with the one
    they train at. Leaves everything bit for bit as it was."""
    if not hasattr(optimizer, "eval"):
        return adapter.state()
    kept = [tensor.detach().clone() for tensor in adapter.parameters()]
    optimizer.eval()
    state = adapter.state()
    with torch.no_grad():
        for tensor, value in zip(adapter.parameters(), kept, strict=True):
            tensor.copy_(value)
    for group in optimizer.param_groups:
        group["train_mode"] = True
    return state


def _build(settings: TrainSection, groups: list[Any], devices: list[torch.device]) -> torch.optim.Optimizer:
    decay = settings.weight_decay
    match settings.optimizer:
        case "adamw":
            fused = all(device.type in {"cpu", "cuda"} for device in devices)
            return torch.optim.AdamW(groups, weight_decay=decay, fused=fused)
        case "adafactor":
            # torch's own scales the rate by the weights' size, which for `up` matrices that start at zero is none.
            from transformers.optimization import Adafactor

            return Adafactor(groups, weight_decay=decay, relative_step=False, scale_parameter=False)
        case "adamw8bit":
            if any(device.type == "mps" for device in devices):
                raise InputError(
                    'train.optimizer = "adamw8bit" does not run on an Apple GPU; set it to "adamw" or "adafactor".'
                )
            return _imported("bitsandbytes.optim", "AdamW8bit")(groups, weight_decay=decay)
        case "prodigy":
            kind = _imported("pytorch_optimizer", "Prodigy")
            return kind(groups, weight_decay=decay, bias_correction=True, safeguard_warmup=True)
        case "schedule_free":
            kind = _imported("pytorch_optimizer", "ScheduleFreeAdamW")
            return kind(groups, weight_decay=decay)


def _imported(module: str, name: str) -> Callable[..., torch.optim.Optimizer]:
    try:
        found: Callable[..., torch.optim.Optimizer] = getattr(import_module(module), name)
    except ImportError as error:
        raise missing_package("train.optimizer", error) from error
    return found
