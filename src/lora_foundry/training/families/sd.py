"""Stable Diffusion 1.x (and any diffusers folder of its form): one CLIP text encoder, one UNet, epsilon or
v."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn

from lora_foundry.bases.devices import choose_dtype
from lora_foundry.bases.inspect import Base
from lora_foundry.bases.loading import load_pipeline, quiet_libraries
from lora_foundry.bases.prompts import PromptEncoder, stack_prompts
from lora_foundry.domain.sections import TrainSection
from lora_foundry.errors import InputError
from lora_foundry.training.diffusion import NoiseProcess
from lora_foundry.training.families import Condition

TARGETS = {
    "attention": ("to_q", "to_k", "to_v", "to_out.0"),
    "feed_forward": ("ff.net.0.proj", "ff.net.2"),
    "projection": ("proj_in", "proj_out"),
}
_SMALL_SAMPLE = 32
_ARCHITECTURES = {768: ("stable-diffusion-v1", "sd_v1"), 1024: ("stable-diffusion-v2", "sd_v2")}


def load(base: Base, settings: TrainSection, device: torch.device) -> Model:
    """Loads `base` frozen, its UNet in the precision of `settings`, its encoders in fp32."""
    return Model(load_pipeline(base, torch.float32, "cpu"), settings, device)


class Model:
    """A Stable Diffusion base in the shape that the trainer wants (`FamilyModel`)."""

    def __init__(self, pipeline: Any, settings: TrainSection, device: torch.device) -> None:
        self._device = device
        self._dtype = choose_dtype(settings.precision, device)
        with quiet_libraries():
            unet: Any = pipeline.unet.to(device=device, dtype=self._dtype)
        if settings.gradient_checkpointing:
            unet.enable_gradient_checkpointing()
        if device.type == "cpu" and self._dtype != torch.float32 and unet.config.sample_size <= _SMALL_SAMPLE:
            # torch's fused attention is slow backwards in bf16 on a CPU, and saves memory only for large pictures.
            unet.set_attn_processor(AttnProcessor())
        self.network: nn.Module = unet
        self._vae: Any = pipeline.vae.to(device)
        self._prompts: PromptEncoder | None = PromptEncoder(
            pipeline.tokenizer, pipeline.text_encoder.to(device)
        )
        self._filler = self._prompts.empty().cpu()
        self._width = int(unet.config.cross_attention_dim)
        self.side_multiple = int(pipeline.vae_scale_factor) * 2 ** (len(unet.config.block_out_channels) - 1)
        self._process = NoiseProcess(pipeline.scheduler.config, settings.min_snr_gamma, device)

    @torch.no_grad()
    def encode_images(self, pixels: Tensor) -> Tensor:
        """Latents by the mean of the VAE's distribution: its spread is far below what training could
        notice."""
        mean: Tensor = self._vae.encode(pixels.to(self._device)).latent_dist.mean
        config = self._vae.config
        latents: Tensor = (mean - (config.shift_factor or 0.0)) * config.scaling_factor
        return latents.cpu()

    def encode_caption(self, text: str) -> Condition:
        """The text encoder's last states, window by window."""
        if self._prompts is None:
            raise RuntimeError("the text encoder was released while captions still needed it")
        return {"text": self._prompts.encode(text).cpu()}

    def stack(self, conditions: Sequence[Condition]) -> Condition:
        """Shorter captions are filled up with windows of the empty one, as the generator does."""
        return {"text": stack_prompts([condition["text"] for condition in conditions], self._filler)}

    def release_encoders(self, keep_text: bool) -> None:
        """Drops the VAE, and the text encoder unless captions are still to come."""
        self._vae = None
        if not keep_text:
            self._prompts = None
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def lora_targets(self, groups: Sequence[str]) -> list[str]:
        """Linear and convolution layers of the attention blocks whose names belong to `groups`."""
        endings = tuple("." + ending for group in groups for ending in TARGETS[group])
        found = [
            name
            for name, module in self.network.named_modules()
            if ".attentions." in name and name.endswith(endings) and isinstance(module, nn.Linear | nn.Conv2d)
        ]
        if not found:
            raise InputError(
                "train.targets selects no layer of the base model; name attention, feed_forward or "
                "projection."
            )
        return found

    def export_name(self, module: str) -> str:
        """down_blocks.0.attentions.0.proj_in -> lora_unet_down_blocks_0_attentions_0_proj_in."""
        return "lora_unet_" + module.replace(".", "_")

    def losses(self, latents: Tensor, condition: Condition, noise: Tensor, positions: Tensor) -> Tensor:
        """Squared error of the UNet's answer, in fp32, weighted by noise level."""
        latents, noise = latents.to(self._device), noise.to(self._device)
        timesteps = self._process.timesteps(positions.to(self._device))
        noised = self._process.add_noise(latents, noise, timesteps).to(self._dtype)
        text = condition["text"].to(self._device, self._dtype)
        answer: Tensor = self.network(noised, timesteps, text, return_dict=False)[0]
        error = (answer.float() - self._process.target(latents, noise, timesteps)).square()
        return error.mean(dim=(1, 2, 3)) * self._process.weights(timesteps)

    def metadata(self) -> dict[str, str]:
        """How other programs name this architecture."""
        architecture, version = _ARCHITECTURES.get(self._width, ("stable-diffusion", "sd_other"))
        v = self._process.prediction == "v_prediction"
        return {
            "modelspec.architecture": f"{architecture}/lora",
            "modelspec.implementation": "diffusers",
            "modelspec.prediction_type": "v" if v else "epsilon",
            "ss_base_model_version": version,
            "ss_v_parameterization": str(v),
            "ss_v2": str(self._width == 1024),
            "ss_zero_terminal_snr": str(self._process.zero_terminal),
        }
