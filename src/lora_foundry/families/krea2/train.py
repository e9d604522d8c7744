"""Krea 2: a flow-matching transformer that reads words and patches in one row."""

from __future__ import annotations

import torch
from torch import Tensor

from lora_foundry.domain.sections import TrainSection
from lora_foundry.families._shared.base import Base
from lora_foundry.families._shared.patches import SIDE, PatchModel, pack, unpack
from lora_foundry.families._shared.prompts import Condition
from lora_foundry.families._shared.qwen import WithLengths, lengths_mask


def load(base: Base, settings: TrainSection, device: torch.device) -> Model:
    """Loads `base` frozen, its transformer in the precision of `settings`. Raises InputError for settings that mean
    nothing here."""
    return Model(base, settings, device)


class Model(WithLengths, PatchModel):
    """A Krea 2 base in the shape that the trainer wants (`FamilyModel`)."""

    words = "Krea 2"

    def _predict(self, noised: Tensor, levels: Tensor, condition: Condition) -> Tensor:
        high, wide = noised.shape[-2:]
        text = condition["text"].to(self._device, self.dtype)
        mask = lengths_mask(condition)
        answer: Tensor = self.network(
            hidden_states=pack(noised),
            encoder_hidden_states=text,
            timestep=levels.to(self.dtype),
            position_ids=_places(text.shape[1], high // SIDE, wide // SIDE, self._device),
            encoder_attention_mask=None if mask is None else mask.to(self._device),
            return_dict=False,
        )[0]
        return unpack(answer, high, wide)

    def metadata(self) -> dict[str, str]:
        """How other programs name this architecture."""
        return {
            "modelspec.architecture": "krea2/lora",
            "modelspec.implementation": "diffusers",
            "ss_base_model_version": "krea2_turbo" if self._base.distilled else "krea2",
            "ss_v2": "False",
        }


def _places(words: int, high: int, wide: int, device: torch.device) -> Tensor:
    """Positions (words + high * wide, 3): all words at the origin, patches by row and column."""
    axes = (torch.arange(count, device=device) for count in (1, high, wide))
    patches = torch.cartesian_prod(*axes)
    return torch.cat([patches.new_zeros(words, 3), patches])
