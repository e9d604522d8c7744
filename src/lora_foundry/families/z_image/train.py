"""Z-Image: a flow-matching transformer that reads its prompt through a language model. It is told the share of picture
and answers with the direction towards the picture, both the other way round from everyone else."""

from __future__ import annotations

import torch
from torch import Tensor

from lora_foundry.domain.sections import TrainSection
from lora_foundry.families._shared.base import Base
from lora_foundry.families._shared.flow import FlowModel
from lora_foundry.families._shared.prompts import Condition
from lora_foundry.families._shared.qwen import WithLengths


def load(base: Base, settings: TrainSection, device: torch.device) -> Model:
    """Loads `base` frozen, its transformer in the precision of `settings`. Raises InputError for settings that mean
    nothing here."""
    return Model(base, settings, device)


class Model(WithLengths, FlowModel):
    """A Z-Image base in the shape that the trainer wants (`FamilyModel`)."""

    words = "Z-Image"

    def _predict(self, noised: Tensor, levels: Tensor, condition: Condition) -> Tensor:
        texts = [
            text[:length].to(self._device, self.dtype)
            for text, length in zip(condition["text"], condition["lengths"].tolist(), strict=True)
        ]
        answers = self.network(list(noised.unsqueeze(2).unbind()), 1 - levels, texts, return_dict=False)[0]
        return -torch.stack(list(answers)).squeeze(2)

    def metadata(self) -> dict[str, str]:
        """How other programs name this architecture."""
        return {
            "modelspec.architecture": "z-image/lora",
            "modelspec.implementation": "diffusers",
            "ss_base_model_version": "zimage_turbo" if self._base.distilled else "zimage",
            "ss_v2": "False",
            "ss_discrete_flow_shift": str(self._parts.scheduler_config.get("shift", 1.0)),
        }
