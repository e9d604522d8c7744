"""The pipeline, in diffusers' manner. A family whose pipeline diffusers has needs no such file: `load.py` names it."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.image_processor import VaeImageProcessor
from diffusers.loaders.lora_pipeline import ZImageLoraLoaderMixin
from diffusers.pipelines.pipeline_utils import DiffusionPipeline, ImagePipelineOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor


class ExamplePipeline(DiffusionPipeline, ZImageLoraLoaderMixin):
    """Draws from prompts that are encoded already. The mixin loads LoRA files for `transformer`."""

    model_cpu_offload_seq: Any = "text_encoder->transformer->vae"
    vae: Any
    transformer: Any
    scheduler: Any

    def __init__(self, vae: Any, text_encoder: Any, tokenizer: Any, transformer: Any, scheduler: Any) -> None:
        super().__init__()
        # The library left this method without annotations.
        self.register_modules(  # type: ignore[no-untyped-call]
            vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, transformer=transformer, scheduler=scheduler
        )  # fmt: skip
        self.vae_scale_factor = 2 ** (len(self.vae.config.block_out_channels) - 1)
        self.image_processor = VaeImageProcessor(self.vae_scale_factor)

    @torch.no_grad()
    def __call__(  # noqa: PLR0913 - the arguments that every pipeline of the library has
        self, *, prompt_embeds: Tensor, negative_prompt_embeds: Tensor, width: int, height: int, num_inference_steps: int,
        guidance_scale: float, generator: Any = None, latents: Any = None, output_type: str = "latent",
    ) -> Any:  # fmt: skip
        """Latents (n, c, h, w), which `Drawing.decode` takes on."""
        if latents is None:
            side = self.vae_scale_factor
            shape = (len(prompt_embeds), self.transformer.config.in_channels, height // side, width // side)
            latents = randn_tensor(shape, generator, self._execution_device, prompt_embeds.dtype)
        self.scheduler.set_timesteps(num_inference_steps, device=latents.device)
        for timestep in self.scheduler.timesteps:
            levels = (timestep / self.scheduler.config.num_train_timesteps).expand(len(latents))
            answer = self.transformer(latents, levels, prompt_embeds)
            if guidance_scale != 1:
                plain = self.transformer(latents, levels, negative_prompt_embeds)
                answer = plain + guidance_scale * (answer - plain)
            latents = self.scheduler.step(answer, timestep, latents, return_dict=False)[0]
        return ImagePipelineOutput(images=latents)
