"""Adds a LoRA that lies on a pipeline into the weights of the layers it changes. Beside them, each of its products is
launched, and its result added, at every layer of every step; within them a picture with the LoRA costs what the base's
own costs. ComfyUI and A1111 do the same."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

_PLENTY = (
    4  # times the network's size: the memory of a GPU that holds the changed weights beside the base's own
)


class Kept(NamedTuple):
    """A layer's weight, and its values without the LoRA."""

    weight: Any
    values: Tensor


@torch.no_grad()
def merge(pipeline: Any) -> list[Kept]:
    """Merges the adapters that are on and takes them off; returns what `restore` needs. Does nothing on a GPU that could
    not hold both: by its size and not by what is free, so that a picture is the same whoever else uses the GPU."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    if not _fits(pipeline):
        return []
    kept: list[Kept] = []
    for part in pipeline.components.values():
        if not isinstance(part, torch.nn.Module):
            continue
        for layer in part.modules():
            if isinstance(layer, BaseTunerLayer):
                weight: Any = layer.get_base_layer().weight
                kept.append(Kept(weight, weight.data))
                weight.data = weight.data.clone()
                layer.merge()
    pipeline.unload_lora_weights()
    return kept


def restore(kept: list[Kept]) -> None:
    """Puts back the base's own weights, bit for bit, and forgets them."""
    while kept:
        weight, values = kept.pop()
        weight.data = values


def _fits(pipeline: Any) -> bool:
    network = pipeline.transformer if hasattr(pipeline, "transformer") else pipeline.unet
    if network.device.type != "cuda":
        return True
    size = sum(weight.nbytes for weight in network.parameters())
    return bool(torch.cuda.get_device_properties(network.device).total_memory >= _PLENTY * size)
