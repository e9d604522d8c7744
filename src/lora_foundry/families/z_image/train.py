"""Z-Image: a flow-matching transformer that reads its prompt through a language model. Picture and noise lie on a
straight line, and the network answers with the line's direction."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from lora_foundry.domain.sections import TrainSection
from lora_foundry.families._shared.base import Base
from lora_foundry.families._shared.diffusion import FlowProcess, mean_error
from lora_foundry.families._shared.flow import refuse_unet_settings
from lora_foundry.families._shared.frozen import FrozenModel
from lora_foundry.families._shared.prompts import Condition
from lora_foundry.families._shared.qwen import ChatPrompts
from lora_foundry.families._shared.targets import Target
from lora_foundry.families.z_image.names import lora_targets

_PATCH = 2


def load(base: Base, settings: TrainSection, device: torch.device) -> Model:
    """Loads `base` frozen, its transformer in the precision of `settings`. Raises InputError for settings that mean
    nothing here."""
    refuse_unet_settings(settings, "Z-Image")
    return Model(base, settings, device)


class Model(FrozenModel):
    """A Z-Image base in the shape that the trainer wants (`FamilyModel`)."""

    def __init__(self, base: Base, settings: TrainSection, device: torch.device) -> None:
        super().__init__(base, settings, device)
        self.side_multiple = self._parts.vae_scale_factor * _PATCH
        self._process = FlowProcess(float(self._parts.scheduler_config.get("shift", 1.0)))

    def lora_targets(self, settings: TrainSection) -> list[Target]:
        """Linear layers of the blocks. Raises InputError where the settings name none."""
        return lora_targets(self.network, settings)

    def stack(self, conditions: Sequence[Condition], empty: Condition | None = None) -> Condition:
        """Captions keep their lengths, which the network is told."""
        return ChatPrompts.stack(conditions)

    def losses(
        self,
        latents: Tensor,
        condition: Condition,
        noise: Tensor,
        positions: Tensor,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Squared error of the answered direction, in fp32. The network wants the share of picture for its time, and
        answers with the direction towards the picture."""
        latents, noise = latents.to(self._device), noise.to(self._device)
        shares = self._process.noise_shares(positions).to(self._device)
        noised = self._process.add_noise(latents, noise, shares).to(self._dtype)
        texts = [
            text[:length].to(self._device, self._dtype)
            for text, length in zip(condition["text"], condition["lengths"].tolist(), strict=True)
        ]
        answers = self.network(list(noised.unsqueeze(2).unbind()), 1 - shares, texts, return_dict=False)[0]
        answer = -torch.stack(list(answers)).squeeze(2).float()
        return mean_error((answer - (noise - latents)).square(), mask)

    def draw(
        self, conditions: Sequence[Condition], frame: tuple[int, int], seed: int, steps: int, cfg: float
    ) -> list[Image.Image]:
        """As all families, but the pipeline counts guidance from 0."""
        return super().draw(conditions, frame, seed, steps, max(0.0, cfg - 1))

    def metadata(self) -> dict[str, str]:
        """How other programs name this architecture."""
        return {
            "modelspec.architecture": "z-image/lora",
            "modelspec.implementation": "diffusers",
            "ss_base_model_version": "zimage",
            "ss_v2": "False",
            "ss_discrete_flow_shift": str(self._process.shift),
        }
