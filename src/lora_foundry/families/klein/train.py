"""FLUX.2 Klein: a flow-matching transformer on patches of latents that are normalised by the VAE's own statistics."""

from __future__ import annotations

import torch
from torch import Tensor

from lora_foundry.domain.sections import TrainSection
from lora_foundry.families._shared.base import Base
from lora_foundry.families._shared.flow import FlowModel
from lora_foundry.families._shared.prompts import Condition
from lora_foundry.families.klein.detect import WIDTH_4B


def load(base: Base, settings: TrainSection, device: torch.device) -> Model:
    """Loads `base` frozen, its transformer in the precision of `settings`. Raises InputError for settings that mean
    nothing here."""
    return Model(base, settings, device)


class Model(FlowModel):
    """A FLUX.2 Klein base in the shape that the trainer wants (`FamilyModel`). Its latents are patches already."""

    words = "FLUX.2 Klein"

    def _tokens(self, latents: Tensor) -> int:
        return latents.shape[-2] * latents.shape[-1]

    def _predict(self, noised: Tensor, levels: Tensor, condition: Condition) -> Tensor:
        text = condition["text"].to(self._device, self.dtype)
        high, wide = noised.shape[-2:]
        answer: Tensor = self.network(
            hidden_states=noised.flatten(2).transpose(1, 2),
            timestep=levels.to(self.dtype),
            guidance=None,
            encoder_hidden_states=text,
            txt_ids=_places(1, 1, text.shape[1], self._device).expand(len(text), -1, -1),
            img_ids=_places(high, wide, 1, self._device).expand(len(text), -1, -1),
            return_dict=False,
        )[0]
        return answer.transpose(1, 2).reshape(noised.shape)

    def _from_vae(self, mean: Tensor) -> Tensor:
        """Patches of two by two latents as channels, normalised."""
        n, channels, high, wide = mean.shape
        side = self.patch
        patches = mean.view(n, channels, high // side, side, wide // side, side)
        patches = patches.permute(0, 1, 3, 5, 2, 4).reshape(n, channels * side**2, high // side, wide // side)
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
        config = self._parts.denoiser_config
        size = "4b" if config["num_attention_heads"] * config["attention_head_dim"] <= WIDTH_4B else "9b"
        kind = "" if self._base.distilled else "_base"
        return {
            "modelspec.architecture": "flux-2-klein/lora",
            "modelspec.implementation": "diffusers",
            "ss_base_model_version": f"flux2_klein_{size}{kind}",
            "ss_v2": "False",
        }


def _places(high: int, wide: int, words: int, device: torch.device) -> Tensor:
    """Positions (1, n, 4) of patches, or of words: time, row, column, word."""
    axes = (torch.arange(count, device=device) for count in (1, high, wide, words))
    return torch.cartesian_prod(*axes).unsqueeze(0)
