"""What the trainer asks: how the network is called, and what an exported file says of its base. Noise, loss, caches and
previews are in `_shared/flow.py` and `_shared/frozen.py`; `_shared/unet.py` has them for UNets."""

from __future__ import annotations

import torch
from torch import Tensor

from lora_foundry.domain.sections import TrainSection
from lora_foundry.families._shared.base import Base
from lora_foundry.families._shared.flow import FlowModel
from lora_foundry.families._shared.prompts import Condition


def load(base: Base, settings: TrainSection, device: torch.device) -> Model:
    """Loads `base` frozen. Raises InputError for settings that mean nothing here."""
    return Model(base, settings, device)


class Model(FlowModel):
    """The base in the shape that the trainer wants (`FamilyModel`)."""

    words = "the example"  # in sentences about settings
    patch = 1  # latents that a token's side stands for

    def _predict(self, noised: Tensor, levels: Tensor, condition: Condition) -> Tensor:
        """The direction towards noise (n, c, h, w); `levels` (n,) are shares of noise."""
        text = condition["text"].to(self._device, self.dtype)
        answer: Tensor = self.network(noised, levels, text)
        return answer

    def metadata(self) -> dict[str, str]:
        """How other programs name this architecture."""
        return {"modelspec.architecture": "example/lora", "ss_base_model_version": "example"}
