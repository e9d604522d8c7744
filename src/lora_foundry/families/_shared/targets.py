"""Where a LoRA can go: the networks of a base by the names that files have for them, and modules in them."""

from __future__ import annotations

from typing import NamedTuple

DENOISER, ENCODERS = "unet", "te"


class Target(NamedTuple):
    """A module that gets a LoRA: `part` is the network it belongs to (unet, te, te1, te2), `module` its path
    there."""

    part: str
    module: str
