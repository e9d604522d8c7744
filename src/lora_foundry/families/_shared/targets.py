"""Where a LoRA can go: the networks of a base by the names that files have for them, and modules in them."""

from __future__ import annotations

from typing import NamedTuple

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
