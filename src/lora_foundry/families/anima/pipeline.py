"""The pipeline, which the library has in its modular form only: the same steps in the shape of its other pipelines, which is
what generator and trainer ask."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from diffusers.image_processor import VaeImageProcessor
from diffusers.loaders.lora_pipeline import AnimaLoraLoaderMixin
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from lora_foundry.families._shared.qwen_vae import FRAMES, original
from lora_foundry.families.anima.prompts import AnimaPrompts


class Drawn(NamedTuple):
    """`images`: latents (n, c, h, w), or pictures in the form that was asked for."""

    images: Any


# The two exceptions for the type checker are methods that the library left without annotations.
class AnimaPipeline(DiffusionPipeline, AnimaLoraLoaderMixin):
    """Anima: Cosmos' transformer, Qwen3 and an adapter between them."""

    model_cpu_offload_seq: Any = "text_encoder->text_conditioner->transformer->vae"

    def __init__(
        self,
        *,
        scheduler: Any,
        vae: Any,
        text_encoder: Any,
        tokenizer: Any,
        t5_tokenizer: Any,
        text_conditioner: Any,
        transformer: Any,
    ) -> None:
        super().__init__()
        self.register_modules(  # type: ignore[no-untyped-call]  # diffusers gives it no types
            scheduler=scheduler, vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, t5_tokenizer=t5_tokenizer,
            text_conditioner=text_conditioner, transformer=transformer,
        )  # fmt: skip
        self.vae_scale_factor = 2 ** len(vae.temperal_downsample)
        self.image_processor = VaeImageProcessor(vae_scale_factor=self.vae_scale_factor)

    @torch.no_grad()
    def __call__(  # noqa: PLR0913 - the shape of the library's pipelines
        self,
        prompt: str = "",
        negative_prompt: str = "",
        *,
        width: int,
        height: int,
        num_inference_steps: int,
        guidance_scale: float = 4.0,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
    ) -> Drawn:
        """Pictures of a prompt, or of embeddings (n, 512, width); latents (n, c, 1, h, w) are the noise to begin with."""
        device, dtype = self._execution_device, self.transformer.dtype
        if prompt_embeds is None or negative_prompt_embeds is None:
            words = AnimaPrompts(self)
            given = words.encode_all([prompt, negative_prompt])
            prompt_embeds, negative_prompt_embeds = (each["text"].unsqueeze(0) for each in given)
        asked = [prompt_embeds.to(device, dtype)]
        if guidance_scale != 1.0:
            asked.append(negative_prompt_embeds.to(device, dtype))
        if latents is None:
            size = (height // self.vae_scale_factor, width // self.vae_scale_factor)
            shape = (len(prompt_embeds), self.vae.config.z_dim, 1, *size)
            latents = randn_tensor(shape, generator=generator, device=device, dtype=torch.float32)
        drawn = self._denoised(latents, asked, num_inference_steps, guidance_scale).squeeze(FRAMES)
        if output_type != "latent":
            plain = original(drawn.to(self.vae.dtype), self.vae.config).unsqueeze(FRAMES)
            pixels = self.vae.decode(plain, return_dict=False)[0].squeeze(FRAMES)
            drawn = self.image_processor.postprocess(pixels, output_type=output_type)
        self.maybe_free_model_hooks()  # type: ignore[no-untyped-call]  # diffusers gives it no types
        return Drawn(drawn)

    def _denoised(self, latents: Tensor, asked: list[Tensor], steps: int, guidance: float) -> Tensor:
        """Latents after all steps; `asked` has the prompts' embeddings and, with guidance, the negative ones'."""
        device, dtype = latents.device, self.transformer.dtype
        self.scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), device=device)
        self.scheduler.set_begin_index(0)
        margins = latents.new_zeros(len(latents), 1, *latents.shape[FRAMES:], dtype=dtype)
        for level in self.scheduler.timesteps:
            share = (level.expand(len(latents)) / self.scheduler.config.num_train_timesteps).to(dtype)
            answers = [
                self.transformer(
                    hidden_states=latents.to(dtype), timestep=share, encoder_hidden_states=text, condition_mask=margins,
                    return_dict=False,
                )[0]
                for text in asked
            ]  # fmt: skip
            answer = answers[0] if len(answers) == 1 else answers[1] + guidance * (answers[0] - answers[1])
            latents = self.scheduler.step(answer, level, latents, return_dict=False)[0]
        return latents
