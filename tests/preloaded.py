"""What drawing and training import at their first use and not before, for the fork server of the tests (`processes`): a
process that is forked from it has it all, and costs a moment instead of ten seconds."""

from __future__ import annotations

from importlib import import_module

from tests.homes import STAGES

MODULES = (
    "lora_foundry.backends.diffusers",
    "lora_foundry.trainer.trainer",
    *(f"lora_foundry.stages.{stage}.step" for stage in STAGES),
    "diffusers.models.autoencoders.autoencoder_kl",
    "diffusers.models.unets.unet_2d_condition",
    "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion",
    "transformers.models.clip.modeling_clip",
    "transformers.models.clip.tokenization_clip",
    "torch._dynamo",
)
for module in MODULES:
    import_module(module)
