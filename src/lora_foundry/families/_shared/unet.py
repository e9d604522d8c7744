"""What the families with a UNet (Stable Diffusion, SDXL) have in common, as the trainer wants it: the modules that
get a LoRA, the noise schedule, and how the UNet is asked."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from lora_foundry.domain.sections import TrainSection
from lora_foundry.families._shared.base import Base
from lora_foundry.families._shared.cpu_layers import use_cpu_layers
from lora_foundry.families._shared.diffusion import NoiseProcess
from lora_foundry.families._shared.frozen import FrozenModel
from lora_foundry.families._shared.prompts import Condition
from lora_foundry.families._shared.targets import Target
from lora_foundry.families._shared.unet_targets import TEXT_TARGETS

_SMALL_SAMPLE = 32


def told_training(base: Base) -> dict[str, Any]:
    """What stands in the place of the scheduler's own configuration, since checkpoint or recipe say so."""
    told: dict[str, Any] = {"prediction_type": base.prediction} if base.prediction else {}
    if base.zero_terminal is not None:
        told["rescale_betas_zero_snr"] = base.zero_terminal
        # Where no signal is left at the end, sampling must start there.
        told |= {"timestep_spacing": "trailing"} if base.zero_terminal else {}
    return told


class UnetModel(FrozenModel):
    """A base with a UNet, frozen (`FamilyModel`). A family's own class adds what the UNet is told beside the text."""

    recordable = True

    def __init__(self, base: Base, settings: TrainSection, device: torch.device) -> None:
        halved = settings.precision == "bf16" and settings.network == "lora"
        super().__init__(base, settings, device, storage=torch.bfloat16 if halved else None)
        blocks = len(self._parts.denoiser_config["block_out_channels"])
        self.side_multiple = self._parts.vae_scale_factor * 2 ** (blocks - 1)
        self._process: NoiseProcess = NoiseProcess(
            self._parts.scheduler_config, settings.min_snr_gamma, device
        )

    @cached_property
    def network(self) -> nn.Module:
        """The UNet."""
        unet: Any = super().network
        if self._device.type == "cpu" and self.dtype == torch.float32:
            use_cpu_layers(unet)
        small = self._parts.denoiser_config["sample_size"] <= _SMALL_SAMPLE
        if self._device.type == "cpu" and self.dtype != torch.float32 and small:
            from diffusers.models.attention_processor import AttnProcessor

            # torch's fused attention is slow backwards in bf16 on a CPU, and saves memory only for large pictures.
            unet.set_attn_processor(AttnProcessor())
        module: nn.Module = unet
        return module

    def lora_targets(self, settings: TrainSection) -> list[Target]:
        """The UNet's layers, and those of the text encoders where the settings ask for them. Raises InputError where
        they name none."""
        found = super().lora_targets(settings)
        if settings.text_encoder_rate > 0:
            for part, encoder in self._prompts.encoders.items():
                found += [
                    Target(part, name)
                    for name, module in encoder.named_modules()
                    if isinstance(module, nn.Linear) and name.endswith(TEXT_TARGETS)
                ]
        return found

    def _levels(self, timesteps: Tensor, latents: Tensor) -> Tensor:
        return self._process.timesteps(timesteps)

    def _predict(self, noised: Tensor, levels: Tensor, condition: Condition) -> Tensor:
        text = condition["text"].to(self._device, self.dtype)
        answer: Tensor = self.network(noised, levels, text, return_dict=False)[0]
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
