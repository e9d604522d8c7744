"""Which layers get a LoRA, and what files call them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from torch import nn

from lora_foundry.domain.sections import TrainSection
from lora_foundry.families._shared.targets import PEFT, Target, transformer_targets

# peft's way to name matrices; KOHYA has an alpha beside them.
FILE_FORMAT = PEFT

# What each word of `train.targets` selects, by the end of a module's path.
TARGETS = {"attention": ("to_q", "to_k", "to_v", "to_out"), "feed_forward": ("up", "down"), "projection": ()}


def lora_targets(network: nn.Module, settings: TrainSection) -> list[Target]:
    """The layers that get a LoRA, in a fixed order."""
    return transformer_targets(network, settings, TARGETS)


def export_name(target: Target) -> str:
    """blocks.0.to_q -> transformer.blocks.0.to_q: what ComfyUI and diffusers both find."""
    return f"transformer.{target.module}"


def comfyui_names(tensors: Iterable[str]) -> Iterator[str]:
    """The names that ComfyUI derives from the tensors of its own file, against which exports are checked before they are
    published; here both have the same layout."""
    yield from (f"transformer.{name.removesuffix('.weight')}" for name in tensors if name.endswith(".weight"))
