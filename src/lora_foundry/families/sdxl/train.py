"""SDXL, and so Illustrious, Pony and NoobAI: two text encoders, a pooled prompt, and a UNet that is told the picture's
size. Files name its modules in the original layout, as sd-scripts does."""

from __future__ import annotations

import torch
from torch import Tensor

from lora_foundry.domain.sections import TrainSection
from lora_foundry.families._shared.base import Base
from lora_foundry.families._shared.prompts import Condition
from lora_foundry.families._shared.unet import UnetModel


def load(base: Base, settings: TrainSection, device: torch.device) -> Model:
    """Loads `base` frozen, its UNet in the precision of `settings`, its encoders in fp32."""
    return Model(base, settings, device)


class Model(UnetModel):
    """An SDXL base in the shape that the trainer wants (`FamilyModel`)."""

    def __init__(self, base: Base, settings: TrainSection, device: torch.device) -> None:
        super().__init__(base, settings, device)
        self._scale = self._parts.vae_scale_factor
        self._sizes: dict[tuple[int, int], Tensor] = {}  # on the device, by the picture's height and width

    def _predict(self, noised: Tensor, levels: Tensor, condition: Condition) -> Tensor:
        """The picture counts as made in the size it is trained at, uncut, as the generator says it."""
        high, wide = noised.shape[-2] * self._scale, noised.shape[-1] * self._scale
        if (high, wide) not in self._sizes:
            sizes = torch.tensor([high, wide, 0, 0, high, wide], dtype=self.dtype)
            self._sizes[high, wide] = sizes.to(self._device)
        answer: Tensor = self.network(
            noised,
            levels,
            condition["text"].to(self._device, self.dtype),
            added_cond_kwargs={
                "text_embeds": condition["pooled"].to(self._device, self.dtype),
                "time_ids": self._sizes[high, wide].expand(len(noised), -1),
            },
            return_dict=False,
        )[0]
        return answer

    def metadata(self) -> dict[str, str]:
        """How other programs name this architecture."""
        return {
            "modelspec.architecture": "stable-diffusion-xl-v1-base/lora",
            "ss_base_model_version": "sdxl_base_v1-0",
            "ss_v2": "False",
            **super().metadata(),
        }
