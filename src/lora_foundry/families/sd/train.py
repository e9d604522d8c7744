"""Stable Diffusion 1.x and 2.x (and any diffusers folder of their form): one CLIP text encoder, one UNet, epsilon or
v."""

from __future__ import annotations

import torch

from lora_foundry.domain.sections import TrainSection
from lora_foundry.families._shared.base import Base
from lora_foundry.families._shared.unet import UnetModel

_ARCHITECTURES = {768: ("stable-diffusion-v1", "sd_v1"), 1024: ("stable-diffusion-v2", "sd_v2")}


def load(base: Base, settings: TrainSection, device: torch.device) -> Model:
    """Loads `base` frozen, its UNet in the precision of `settings`, its encoders in fp32."""
    return Model(base, settings, device)


class Model(UnetModel):
    """A Stable Diffusion base in the shape that the trainer wants (`FamilyModel`)."""

    def metadata(self) -> dict[str, str]:
        """How other programs name this architecture."""
        width = int(self._parts.denoiser_config["cross_attention_dim"])
        architecture, version = _ARCHITECTURES.get(width, ("stable-diffusion", "sd_other"))
        return {
            "modelspec.architecture": f"{architecture}/lora",
            "ss_base_model_version": version,
            "ss_v2": str(width == 1024),
            **super().metadata(),
        }
