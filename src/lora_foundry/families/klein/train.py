"""FLUX.2 Klein: a flow-matching transformer on patches of latents that are normalised by the VAE's own statistics. The
shift towards noise grows with the picture's size, as when the base was made."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lora_foundry.domain.sections import TrainSection
from lora_foundry.families._shared.base import Base
from lora_foundry.families._shared.diffusion import FlowProcess, mean_error
from lora_foundry.families._shared.flow import refuse_unet_settings
from lora_foundry.families._shared.frozen import FrozenModel
from lora_foundry.families._shared.prompts import Condition
from lora_foundry.families._shared.targets import Target
from lora_foundry.families.klein.names import lora_targets

_PATCH = 2


def load(base: Base, settings: TrainSection, device: torch.device) -> Model:
    """Loads `base` frozen, its transformer in the precision of `settings`. Raises InputError for settings that mean
    nothing here."""
    refuse_unet_settings(settings, "FLUX.2 Klein")
    return Model(base, settings, device)


class Model(FrozenModel):
    """A FLUX.2 Klein base in the shape that the trainer wants (`FamilyModel`)."""

    def __init__(self, base: Base, settings: TrainSection, device: torch.device) -> None:
        super().__init__(base, settings, device)
        self.side_multiple = self._parts.vae_scale_factor * _PATCH
        self._process = FlowProcess(float(self._parts.scheduler_config.get("shift", 1.0)))

    def lora_targets(self, settings: TrainSection) -> list[Target]:
        """Linear layers of the blocks. Raises InputError where the settings name none."""
        return lora_targets(self.network, settings)

    def shift(self, tokens: int) -> float:
        """The schedule's shift for a picture of so many patches: e^mu, mu on a line between the scheduler's two
        resolutions (Esser et al. 2024); the fixed shift where the scheduler has no dynamic one."""
        config = self._parts.scheduler_config
        if not config.get("use_dynamic_shifting"):
            return self._process.shift
        low, high = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
        least, most = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
        return math.exp(least + (most - least) * (tokens - low) / (high - low))

    def losses(
        self,
        latents: Tensor,
        condition: Condition,
        noise: Tensor,
        positions: Tensor,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Squared error of the answered direction towards noise, in fp32."""
        latents, noise = latents.to(self._device), noise.to(self._device)
        high, wide = latents.shape[-2:]
        shares = self._process.noise_shares(positions, self.shift(high * wide)).to(self._device)
        noised = self._process.add_noise(latents, noise, shares).to(self._dtype)
        text = condition["text"].to(self._device, self._dtype)
        answer = self.network(
            hidden_states=noised.flatten(2).transpose(1, 2),
            timestep=shares.to(self._dtype),
            guidance=None,
            encoder_hidden_states=text,
            txt_ids=_places(1, 1, text.shape[1]).to(self._device).expand(len(text), -1, -1),
            img_ids=_places(high, wide, 1).to(self._device).expand(len(text), -1, -1),
            return_dict=False,
        )[0]
        direction = answer.transpose(1, 2).unflatten(2, (high, wide)).float()
        return mean_error((direction - (noise - latents)).square(), mask)

    def _from_vae(self, mean: Tensor) -> Tensor:
        """Patches of two by two latents as channels, normalised."""
        n, channels, high, wide = mean.shape
        patches = mean.view(n, channels, high // _PATCH, _PATCH, wide // _PATCH, _PATCH)
        patches = patches.permute(0, 1, 3, 5, 2, 4).reshape(
            n, channels * _PATCH**2, high // _PATCH, wide // _PATCH
        )
        statistics = self._vae.bn
        middle = statistics.running_mean.view(1, -1, 1, 1).to(mean)
        spread = (statistics.running_var.view(1, -1, 1, 1) + self._vae.config.batch_norm_eps).sqrt().to(mean)
        latents: Tensor = (patches - middle) / spread
        return latents

    def _to_vae(self, latents: Tensor) -> Tensor:
        """The pipeline has taken patches and normalisation back already."""
        return latents

    def metadata(self) -> dict[str, str]:
        """How other programs name this architecture."""
        return {
            "modelspec.architecture": "flux-2-klein/lora",
            "modelspec.implementation": "diffusers",
            "ss_base_model_version": "flux2_klein",
            "ss_v2": "False",
        }


def _places(high: int, wide: int, words: int) -> Tensor:
    """Positions (1, n, 4) of patches, or of words: time, row, column, word."""
    return torch.cartesian_prod(
        torch.arange(1), torch.arange(high), torch.arange(wide), torch.arange(words)
    ).unsqueeze(0)
