"""Where a LoRA can go: the networks of a base by the names that files have for them, and modules in them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from torch import nn

from lora_foundry.domain.sections import TrainSection
from lora_foundry.errors import InputError

DENOISER, ENCODERS = "unet", "te"


class FileFormat(NamedTuple):
    """How a LoRA file names a module's tensors: kohya's way with an alpha beside each pair of matrices, or peft's way,
    which has none, so that the scale alpha / rank is folded into the up matrix."""

    down: str = "lora_down.weight"
    up: str = "lora_up.weight"
    alpha: bool = True


KOHYA = FileFormat()
PEFT = FileFormat("lora_A.weight", "lora_B.weight", alpha=False)


class Target(NamedTuple):
    """A module that gets a LoRA: `part` is the network it belongs to (unet, te, te1, te2), `module` its path
    there."""

    part: str
    module: str


def transformer_targets(
    network: nn.Module, settings: TrainSection, groups: Mapping[str, tuple[str, ...]]
) -> list[Target]:
    """The linear layers of a transformer whose paths end as a group of `train.targets` says. Raises InputError where
    that is none."""
    endings = tuple("." + ending for group in settings.targets for ending in groups[group])
    found = [
        Target(DENOISER, name)
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear) and endings and name.endswith(endings)
    ]
    if not found:
        raise InputError("train.targets selects no layer of this base; name attention or feed_forward.")
    return found
