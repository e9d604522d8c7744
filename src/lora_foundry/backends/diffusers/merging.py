"""Adds a LoRA that lies on a pipeline into the weights of the layers it changes. Beside them, each of its products is
launched, and its result added, at every layer of every step; within them a picture with the LoRA costs what the base's
own costs. ComfyUI and A1111 do the same."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from lora_foundry.families._shared.devices import total_memory
from lora_foundry.families._shared.drawing import Drawing
from lora_foundry.families._shared.streaming import streams_of

_PLENTY = 4  # times the network's size: the memory that holds the changed weights beside the base's own


class Kept(NamedTuple):
    """A layer's weight, and its values without the LoRA."""

    weight: Any
    values: Tensor


@torch.no_grad()
def merge(drawing: Drawing) -> list[Kept]:
    """Merges the adapters that are on and takes them off; returns what `restore` needs. Does nothing where the memory
    could not hold both: by its size and not by what is free, so that a picture is the same whoever else uses it; nor
    where the weights are streamed and not at hand. An error leaves the base as it was."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    pipeline = drawing.pipeline
    if not _fits(drawing.network):
        return []
    kept: list[Kept] = []
    parts = [part for part in pipeline.components.values() if isinstance(part, torch.nn.Module)]
    layers: list[Any] = [
        layer for part in parts for layer in part.modules() if isinstance(layer, BaseTunerLayer)
    ]
    try:
        for layer in layers:
            weight: Any = layer.get_base_layer().weight
            kept.append(Kept(weight, weight.data))
            weight.data = weight.data.clone()
            layer.merge()
        pipeline.unload_lora_weights()
    except BaseException:
        restore(kept)
        raise
    return kept


def restore(kept: list[Kept]) -> None:
    """Puts back the base's own weights, bit for bit, and forgets them."""
    while kept:
        weight, values = kept.pop()
        weight.data = values


def _fits(network: Any) -> bool:
    if streams_of(network) is not None:
        return False
    size: int = sum(weight.nbytes for weight in network.parameters())
    if network.device.type != "cuda":
        return total_memory() >= _PLENTY * size
    return bool(torch.cuda.get_device_properties(network.device).total_memory >= _PLENTY * size)
