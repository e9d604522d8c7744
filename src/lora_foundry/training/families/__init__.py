"""What the trainer must know about a kind of base model, and nothing else of it. One module a family, the
same names in each: a function `load` that returns an object of the shape `FamilyModel`. To support a family,
add a module here and its row in `bases.kinds`."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pkgutil import iter_modules
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from lora_foundry.bases.inspect import Base
from lora_foundry.domain.sections import TrainSection
from lora_foundry.errors import BaseModelError, did_you_mean

Condition = dict[str, Tensor]
"""What a caption becomes for the network: named tensors (SD has one, SDXL three), without a batch
dimension."""


class FamilyModel(Protocol):
    """A loaded, frozen base, as the trainer uses it."""

    network: nn.Module
    """The denoiser, which receives the LoRA."""

    side_multiple: int
    """Picture sides must be multiples of this."""

    def encode_images(self, pixels: Tensor) -> Tensor:
        """Latents (n, c, h, w), scaled as the network wants them, of pictures (n, 3, H, W) in -1..1."""
        ...

    def encode_caption(self, text: str) -> Condition:
        """The condition of one caption, of any length."""
        ...

    def stack(self, conditions: Sequence[Condition]) -> Condition:
        """Conditions of unlike length as one batch."""
        ...

    def release_encoders(self, keep_text: bool) -> None:
        """Lets go of what is no longer needed once latents (and captions) are cached."""
        ...

    def lora_targets(self, groups: Sequence[str]) -> list[str]:
        """The paths of the network's modules that get a LoRA, in a fixed order."""
        ...

    def export_name(self, module: str) -> str:
        """The name that kohya's files give to the module at this path."""
        ...

    def losses(self, latents: Tensor, condition: Condition, noise: Tensor, positions: Tensor) -> Tensor:
        """The weighted loss of each sample (n,), where `positions` in 0..1 says how far each is noised."""
        ...

    def metadata(self) -> dict[str, str]:
        """What an exported file says about its base: modelspec.* and ss_* entries."""
        ...


class Family(Protocol):
    """A family's module."""

    def load(self, base: Base, settings: TrainSection, device: torch.device) -> FamilyModel:
        """Loads `base` frozen, its network in the precision of `settings`. Raises BaseModelError."""
        ...


def load_family(base: Base, settings: TrainSection, device: torch.device) -> FamilyModel:
    """Loads `base` with the module of its family. Raises BaseModelError where there is none."""
    known = [module.name for module in iter_modules(__path__)]
    if base.family not in known:
        raise BaseModelError(f"No trainer for the family {base.family!r}; {did_you_mean(base.family, known)}")
    module = cast(Family, import_module(f"{__name__}.{base.family}"))
    return module.load(base, settings, device)
