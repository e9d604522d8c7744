"""What the families with a UNet (Stable Diffusion, SDXL) have in common, as the trainer wants it: the modules that
get a LoRA with kohya's names for them, and the loss."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from lora_foundry.domain.sections import TrainSection
from lora_foundry.errors import InputError
from lora_foundry.families._shared.cpu_layers import lighten
from lora_foundry.families._shared.diffusion import NoiseProcess, mean_error
from lora_foundry.families._shared.frozen import FrozenModel
from lora_foundry.families._shared.inspect import Base
from lora_foundry.families._shared.prompts import Condition
from lora_foundry.families._shared.targets import DENOISER, Target

TARGETS = {
    "attention": ("to_q", "to_k", "to_v", "to_out.0"),
    "feed_forward": ("ff.net.0.proj", "ff.net.2"),
    "projection": ("proj_in", "proj_out"),
}
_TEXT_TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
_CONVOLUTIONS = (".resnets.", ".downsamplers.", ".upsamplers.")
_SMALL_SAMPLE = 32


class UnetModel(FrozenModel):
    """A base with a UNet, frozen (`FamilyModel`). A family's own class adds what the UNet is told beside the text."""

    recordable = True

    def __init__(self, base: Base, settings: TrainSection, device: torch.device) -> None:
        halved = settings.precision == "bf16" and settings.network == "lora"
        super().__init__(base, settings, device, storage=torch.bfloat16 if halved else None)
        blocks = len(self._parts.denoiser_config["block_out_channels"])
        self.side_multiple = self._parts.vae_scale_factor * 2 ** (blocks - 1)
        self._process = NoiseProcess(self._parts.scheduler_config, settings.min_snr_gamma, device)

    @cached_property
    def network(self) -> nn.Module:
        """The UNet."""
        unet: Any = super().network
        if self._device.type == "cpu" and self._dtype == torch.float32:
            lighten(unet)
        small = self._parts.denoiser_config["sample_size"] <= _SMALL_SAMPLE
        if self._device.type == "cpu" and self._dtype != torch.float32 and small:
            from diffusers.models.attention_processor import AttnProcessor

            # torch's fused attention is slow backwards in bf16 on a CPU, and saves memory only for large pictures.
            unet.set_attn_processor(AttnProcessor())
        module: nn.Module = unet
        return module

    def lora_targets(self, settings: TrainSection) -> list[Target]:
        """Layers of the attention blocks whose names belong to `targets`, convolutions and text encoders where the
        settings ask for them. Raises InputError where that is none."""
        endings = tuple("." + ending for group in settings.targets for ending in TARGETS[group])
        found = [
            Target(DENOISER, name)
            for name, module in self.network.named_modules()
            if (
                ".attentions." in name
                and name.endswith(endings)
                and isinstance(module, nn.Linear | nn.Conv2d)
            )
            or (
                settings.conv_rank
                and isinstance(module, nn.Conv2d)
                and any(mark in name for mark in _CONVOLUTIONS)
            )
        ]
        if not found:
            raise InputError(
                "train.targets selects no layer of the base model; name attention, feed_forward or "
                "projection."
            )
        if settings.text_encoder_rate > 0:
            for part, encoder in self._prompts.encoders.items():
                found += [
                    Target(part, name)
                    for name, module in encoder.named_modules()
                    if isinstance(module, nn.Linear) and name.endswith(_TEXT_TARGETS)
                ]
        return found

    def export_name(self, target: Target) -> str:
        """down_blocks.0.attentions.0.proj_in of the UNet -> lora_unet_down_blocks_0_attentions_0_proj_in."""
        path = target.module
        if target.part != DENOISER and not path.startswith("text_model."):
            path = (
                f"text_model.{path}"  # files always say so; the library's module tree depends on its version
            )
        return f"lora_{target.part}_" + path.replace(".", "_")

    def losses(
        self,
        latents: Tensor,
        condition: Condition,
        noise: Tensor,
        positions: Tensor,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Squared error of the UNet's answer, in fp32, weighted by noise level."""
        latents, noise = latents.to(self._device), noise.to(self._device)
        timesteps = self._process.timesteps(positions.to(self._device))
        noised = self._process.add_noise(latents, noise, timesteps).to(self._dtype)
        answer = self._predict(noised, timesteps, condition)
        error = (answer.float() - self._process.target(latents, noise, timesteps)).square()
        return mean_error(error, mask) * self._process.weights(timesteps)

    def _predict(self, noised: Tensor, timesteps: Tensor, condition: Condition) -> Tensor:
        text = condition["text"].to(self._device, self._dtype)
        answer: Tensor = self.network(noised, timesteps, text, return_dict=False)[0]
        return answer

    def metadata(self) -> dict[str, str]:
        """What an exported file says about how the base was trained to answer."""
        v = self._process.prediction == "v_prediction"
        return {
            "modelspec.implementation": "diffusers",
            "modelspec.prediction_type": "v" if v else "epsilon",
            "ss_v_parameterization": str(v),
            "ss_zero_terminal_snr": str(self._process.zero_terminal),
        }
