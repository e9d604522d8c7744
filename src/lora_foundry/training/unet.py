"""What the families with a UNet (Stable Diffusion, SDXL) have in common, as the trainer wants it: latents, captions,
the modules that get a LoRA with kohya's names for them, the loss, and pictures drawn while training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from diffusers.models.attention_processor import AttnProcessor
from PIL import Image
from torch import Tensor, nn

from lora_foundry.bases.devices import choose_dtype
from lora_foundry.bases.loading import quiet_libraries
from lora_foundry.domain.sections import TrainSection
from lora_foundry.errors import InputError
from lora_foundry.training.adapter import DENOISER, Target
from lora_foundry.training.diffusion import NoiseProcess, mean_error
from lora_foundry.training.families import Condition

TARGETS = {
    "attention": ("to_q", "to_k", "to_v", "to_out.0"),
    "feed_forward": ("ff.net.0.proj", "ff.net.2"),
    "projection": ("proj_in", "proj_out"),
}
_TEXT_TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
_CONVOLUTIONS = (".resnets.", ".downsamplers.", ".upsamplers.")
_SMALL_SAMPLE = 32


class UnetModel:
    """A base with a UNet, frozen (`FamilyModel`). A family's own class says how captions become conditions."""

    def __init__(self, parts: Any, settings: TrainSection, device: torch.device) -> None:
        """`parts`: a base by its parts (bases.parts), or a whole pipeline where pictures are to be drawn."""
        self._device, self._settings = device, settings
        self._dtype = choose_dtype(settings.precision, device)
        self._parts = parts
        whole = settings.sample_prompts
        self._pipeline: Any = parts if whole else None
        self._vae_loaded: Any = None
        unet = parts.unet.config if whole else parts.unet_config
        scheduler = parts.scheduler.config if whole else parts.scheduler_config
        self._context = int(unet["cross_attention_dim"])
        self.side_multiple = int(parts.vae_scale_factor) * 2 ** (len(unet["block_out_channels"]) - 1)
        self._process = NoiseProcess(scheduler, settings.min_snr_gamma, device)

    @cached_property
    def network(self) -> nn.Module:
        """The UNet, loaded at its first use, which is after the encoders were let go."""
        with quiet_libraries():
            loaded = self._pipeline.unet if self._pipeline else self._parts.load_unet()
            unet: Any = loaded.to(device=self._device, dtype=self._dtype)
        if self._settings.gradient_checkpointing:
            unet.enable_gradient_checkpointing()
        if (
            self._device.type == "cpu"
            and self._dtype != torch.float32
            and unet.config.sample_size <= _SMALL_SAMPLE
        ):
            # torch's fused attention is slow backwards in bf16 on a CPU, and saves memory only for large pictures.
            unet.set_attn_processor(AttnProcessor())
        module: nn.Module = unet
        return module

    @property
    def _vae(self) -> Any:
        if self._vae_loaded is None:
            self._vae_loaded = self._parts.vae.to(self._device)
        return self._vae_loaded

    @property
    def networks(self) -> Mapping[str, nn.Module]:
        """The UNet and the text encoders, by kohya's names for them."""
        return {DENOISER: self.network, **self._text_encoders()}

    def _text_encoders(self) -> Mapping[str, nn.Module]:
        raise NotImplementedError

    @torch.no_grad()
    def encode_images(self, pixels: Tensor) -> Tensor:
        """Latents by the mean of the VAE's distribution: its spread is far below what training could
        notice."""
        mean: Tensor = self._vae.encode(pixels.to(self._device)).latent_dist.mean
        config = self._vae.config
        latents: Tensor = (mean - (config.shift_factor or 0.0)) * config.scaling_factor
        return latents.cpu()

    def _release_vae(self) -> None:
        """Drops the VAE, or lays it aside in the computer's memory where pictures are to be drawn."""
        if self._pipeline is None:
            self._vae_loaded = None
        else:
            self._vae.cpu()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

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
            for part, encoder in self._text_encoders().items():
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

    @torch.no_grad()
    def draw(
        self, conditions: Sequence[Condition], frame: tuple[int, int], seed: int, steps: int, cfg: float
    ) -> list[Image.Image]:
        """Pictures of `frame` with the network as it stands, one a condition; the first condition is the negative
        one."""
        stacked = self.stack(conditions)
        self._vae.to(self._device)
        with quiet_libraries():
            images: list[Image.Image] = self._pipeline(
                **self._prompt_arguments(stacked),
                generator=[torch.Generator().manual_seed(seed) for _ in conditions[1:]],
                width=frame[0],
                height=frame[1],
                num_inference_steps=steps,
                guidance_scale=cfg,
            ).images
        self._vae.cpu()
        return images

    def _prompt_arguments(self, stacked: Condition) -> dict[str, Tensor]:
        """The pipeline's arguments for stacked conditions of which the first is the negative one."""
        text = stacked["text"].to(self._device, self._dtype)
        count = len(text) - 1
        return {"prompt_embeds": text[1:], "negative_prompt_embeds": text[:1].expand(count, -1, -1)}

    def stack(self, conditions: Sequence[Condition]) -> Condition:
        """Conditions of unlike length as one batch."""
        raise NotImplementedError

    def metadata(self) -> dict[str, str]:
        """What an exported file says about how the base was trained to answer."""
        v = self._process.prediction == "v_prediction"
        return {
            "modelspec.implementation": "diffusers",
            "modelspec.prediction_type": "v" if v else "epsilon",
            "ss_v_parameterization": str(v),
            "ss_zero_terminal_snr": str(self._process.zero_terminal),
        }
