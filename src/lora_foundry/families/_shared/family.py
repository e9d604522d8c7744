"""What the trainer must know about a kind of base model, and nothing else of it: a family's module `train` has a function
`load` that returns an object of the shape `FamilyModel`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol, cast

import torch
from PIL import Image
from torch import Tensor, nn

from lora_foundry.domain.sections import TrainSection
from lora_foundry.families._shared.base import Base
from lora_foundry.families._shared.prompts import Condition
from lora_foundry.families._shared.registry import family_part
from lora_foundry.families._shared.targets import FileFormat, Target


class Batch(NamedTuple):
    """Samples that are computed at once (a micro-batch): latents and noise (n, c, h, w), the captions' condition, and the
    timesteps (n,), which say in 0..1 how far each is noised; mask (n, 1, h, w) in 0..1, what of each counts, and weights
    (n,), how much each counts, only where the settings ask for them."""

    latents: Tensor
    condition: Condition
    noise: Tensor
    timesteps: Tensor
    mask: Tensor | None = None
    weights: Tensor | None = None


class FamilyModel(Protocol):
    """A loaded, frozen base, as the trainer uses it."""

    network: nn.Module
    """The denoiser."""

    dtype: torch.dtype
    """The type that the denoiser computes in on its device, which need not be the one that the recipe names."""

    side_multiple: int
    """Picture sides must be multiples of this."""

    recordable: bool
    """Whether `losses` asks for nothing but tensors of known shape, so that a GPU can record it."""

    @property
    def networks(self) -> Mapping[str, nn.Module]:
        """All networks that can get a LoRA, by the names that files have for them: unet, te, te1, te2."""
        ...

    def encode_images(self, pixels: Tensor) -> Tensor:
        """Latents (n, c, h, w), scaled as the network wants them, of pictures (n, 3, H, W) in -1..1."""
        ...

    def encode_captions(self, texts: Sequence[str]) -> list[Condition]:
        """The conditions of captions of any length, on the device; gradients flow where the caller lets them."""
        ...

    def stack(self, conditions: Sequence[Condition], empty: Condition | None = None) -> Condition:
        """Conditions as one batch; of unlike length only with `empty`, the empty prompt's, which fills up."""
        ...

    def release_encoders(self, keep_text: bool) -> None:
        """Lets go of what is no longer needed once latents (and captions) are cached."""
        ...

    def lora_targets(self, settings: TrainSection) -> list[Target]:
        """The modules that get a LoRA, in a fixed order. Raises InputError for settings that fit no module."""
        ...

    @property
    def file_format(self) -> FileFormat:
        """How an exported file names the tensors of a module."""
        ...

    def export_name(self, target: Target) -> str:
        """The name by which ComfyUI and diffusers both find this module."""
        ...

    def losses(self, batch: Batch) -> Tensor:
        """The loss of each sample (n,), weighted by its noise level; the batch's own weights are the trainer's."""
        ...

    def draw(
        self, conditions: Sequence[Condition], frame: tuple[int, int], seed: int, steps: int, cfg: float
    ) -> list[Image.Image]:
        """Pictures with the network as it stands, one for each condition but the first, which is the negative one.
        Where they were let go of, the VAE is loaded again."""
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
    module = cast(Family, family_part(base.family, "train"))
    return module.load(base, settings, device)
