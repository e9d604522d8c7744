"""Qwen-Image: a flow-matching transformer on patches, with a stream of its own for the words."""

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
    """A Qwen-Image base in the shape that the trainer wants (`FamilyModel`)."""

    words = "Qwen-Image"

    def _predict(self, noised: Tensor, levels: Tensor, condition: Condition) -> Tensor:
        high, wide = noised.shape[-2:]
        mask = lengths_mask(condition)
        answer: Tensor = self.network(
            hidden_states=pack(noised),
            timestep=levels.to(self.dtype),
            encoder_hidden_states=condition["text"].to(self._device, self.dtype),
            encoder_hidden_states_mask=None if mask is None else mask.to(self._device),
            img_shapes=[[(1, high // SIDE, wide // SIDE)]] * len(noised),
            return_dict=False,
        )[0]
        return unpack(answer, high, wide)

    def metadata(self) -> dict[str, str]:
        """How other programs name this architecture."""
        return {
            "modelspec.architecture": "qwen-image/lora",
            "modelspec.implementation": "diffusers",
            "ss_base_model_version": "qwen_image",
            "ss_v2": "False",
        }
