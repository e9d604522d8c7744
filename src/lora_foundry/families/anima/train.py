"""Anima: Cosmos' flow-matching transformer, made for films, of which a picture is one frame."""

from __future__ import annotations

import torch
from torch import Tensor

from lora_foundry.domain.sections import TrainSection
from lora_foundry.families._shared.base import Base
from lora_foundry.families._shared.prompts import Condition
from lora_foundry.families._shared.qwen_vae import FRAMES, QwenVaeModel


def load(base: Base, settings: TrainSection, device: torch.device) -> Model:
    """Loads `base` frozen, its transformer in the precision of `settings`. Raises InputError for settings that mean
    nothing here."""
    return Model(base, settings, device)


class Model(QwenVaeModel):
    """An Anima base in the shape that the trainer wants (`FamilyModel`)."""

    words = "Anima"

    def _predict(self, noised: Tensor, levels: Tensor, condition: Condition) -> Tensor:
        films = noised.unsqueeze(FRAMES)
        answer: Tensor = self.network(
            hidden_states=films,
            timestep=levels.to(self.dtype),
            encoder_hidden_states=condition["text"].to(self._device, self.dtype),
            condition_mask=films.new_zeros(len(films), 1, *films.shape[FRAMES:]),
            return_dict=False,
        )[0]
        return answer.squeeze(FRAMES)

    def metadata(self) -> dict[str, str]:
        """How other programs name this architecture."""
        return {
            "modelspec.architecture": "anima/lora",
            "modelspec.implementation": "diffusers",
            "ss_base_model_version": "anima",
            "ss_v2": "False",
        }
