"""Tells Stable Diffusion 1.x and 2.x by the keys of a checkpoint and the pipeline of a folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from lora_foundry.families._shared.kinds import Kind, PublishedName
from lora_foundry.families._shared.ldm import LDM_UNET, channels_fault, examine_unet, whole
from lora_foundry.families._shared.vocabularies import CLIP
from lora_foundry.files.safetensors import Header

SUPPORTED = "Stable Diffusion 1.x and 2.x (.safetensors checkpoints or diffusers folders)"
PIPELINES = {"StableDiffusionPipeline": "Stable Diffusion"}
FAMILY = "sd"
PUBLISHED = {"sd_v1": PublishedName("SD 1.5", "SD1"), "sd_v2": PublishedName("SD 2.1", "SD2")}
VOCABULARIES = (CLIP,)
ADAPTER = None


def look(header: Header, name: str) -> Kind | None:
    """A checkpoint with an original-layout UNet that is not told the picture's size, or a part of one."""
    shapes = header.shapes
    if any(key.startswith(LDM_UNET) for key in shapes):
        if any(key.startswith("model.diffusion_model.label_emb.") for key in shapes):
            return None
        fault = channels_fault(shapes)
        if fault:
            return Kind(fault)
        if any(key.startswith("cond_stage_model.model.") for key in shapes):
            return whole(Kind("Stable Diffusion 2.x", FAMILY, "sd2"), shapes, "cond_stage_model.model.")
        kind = Kind("a Stable Diffusion checkpoint", FAMILY, "sd")
        # The encoder's names have no `text_model.` in them in files that an older program wrote.
        return whole(kind, shapes, "cond_stage_model.transformer.")
    if any(key.startswith("cond_stage_model.model.") for key in shapes):
        return Kind("the text encoder of a Stable Diffusion 2.x model, without UNet and VAE")
    if any(key.startswith(("down_blocks.", "up_blocks.")) for key in shapes) and not any(
        key.startswith("add_embedding.") for key in shapes
    ):
        return Kind(
            "a UNet alone, without VAE and text encoder; give the checkpoint or the diffusers folder it is from"
        )
    return None


def examine(path: Path, index: Mapping[str, object]) -> Kind | None:
    """Inpainting and depth models have more input channels than a latent has."""
    fault = examine_unet(path)
    return Kind(fault) if fault else None
