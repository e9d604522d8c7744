"""What the flow-matching families have in common, as the trainer wants it: latents on a straight line to noise, a
transformer on patches of them, and settings that mean nothing to any of them."""

from __future__ import annotations

import torch
from torch import Tensor

from lora_foundry.domain.sections import TrainSection
from lora_foundry.errors import InputError
from lora_foundry.families._shared.base import Base
from lora_foundry.families._shared.diffusion import FlowProcess
from lora_foundry.families._shared.frozen import FrozenModel


class FlowModel(FrozenModel):
    """A flow-matching base, frozen (`FamilyModel`). A family's own class says how its transformer is asked (`_predict`)
    and what its files say of it (`metadata`)."""

    words: str
    """The family's name in sentences."""

    patch = 2
    """Latents that a token's side stands for."""

    def __init__(self, base: Base, settings: TrainSection, device: torch.device) -> None:
        """Raises InputError for settings that mean nothing here."""
        refuse_unet_settings(settings, self.words)
        super().__init__(base, settings, device)
        self.side_multiple = self._parts.vae_scale_factor * self.patch
        self._process: FlowProcess = FlowProcess(self._parts.scheduler_config)

    def _levels(self, timesteps: Tensor, latents: Tensor) -> Tensor:
        return self._process.noise_shares(timesteps, self._tokens(latents))

    def _tokens(self, latents: Tensor) -> int:
        """How many tokens a picture is to the transformer."""
        high, wide = latents.shape[-2:]
        return high * wide // self.patch**2


def refuse_unet_settings(settings: TrainSection, name: str) -> None:
    """Raises InputError for settings that speak of noise levels, CLIP or convolutions. name: the family in words."""
    for wrong, sentence in (
        (
            settings.min_snr_gamma > 0,
            "train.min_snr_gamma weighs noise levels that a flow-matching model has not",
        ),
        (
            settings.text_encoder_rate > 0,
            f"train.text_encoder_rate is for CLIP; {name}'s language model stays as it is",
        ),
        (settings.conv_rank > 0, "train.conv_rank is for convolutions, of which a transformer has none"),
        (settings.noise_offset > 0, f"train.noise_offset is for bases that cannot reach black; {name} can"),
    ):
        if wrong:
            raise InputError(f"{sentence}; set it to 0.")
