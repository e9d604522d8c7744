"""What the program, and drawing and training at their first use, import: for the fork server of the tests (`processes`). A
process that is forked from it has it all, and costs a moment instead of ten seconds; so do those that it starts."""

from __future__ import annotations

import gc
import os
from importlib import import_module

from tests.disk import wait_for_no_disk
from tests.forked import fork_ours
from tests.homes import STAGES

os.environ["COLUMNS"] = "500"  # consoles are made at import, and break no line then

MODULES = (
    "lora_foundry.cli.app",
    "lora_foundry.cli.create",
    "lora_foundry.doctor",
    "lora_foundry.web.app",
    "lora_foundry.web.serving",
    "lora_foundry.tasks.service",
    "lora_foundry.stage_job",
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
gc.disable()
for module in MODULES:
    import_module(module)
gc.freeze()  # half a million objects that stay; no forked process looks through them
gc.enable()
fork_ours()
wait_for_no_disk()
