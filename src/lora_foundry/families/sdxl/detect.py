"""Tells SDXL (and so Illustrious, Pony and NoobAI) by the keys of a checkpoint and the pipeline of a folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from lora_foundry.families._shared.kinds import Kind, PublishedName
from lora_foundry.families._shared.ldm import LDM_UNET, channels_fault, examine_unet, whole
from lora_foundry.families._shared.vocabularies import CLIP
from lora_foundry.files.safetensors import Header

SUPPORTED = "SDXL, Illustrious, Pony and NoobAI (.safetensors checkpoints or diffusers folders)"
NAME = "an SDXL model (Illustrious, Pony and NoobAI are SDXL too)"
PIPELINES = {"StableDiffusionXLPipeline": NAME}
FAMILY = "sdxl"
PUBLISHED = {"sdxl": PublishedName("SDXL 1.0", "SDXL")}
VOCABULARIES = (CLIP,)
ADAPTER = None


def look(header: Header, name: str) -> Kind | None:
    """A checkpoint whose UNet is told the picture's size, or a part of one."""
    shapes = header.shapes
    if any(key.startswith("model.diffusion_model.label_emb.") for key in shapes):
        if any(key.startswith("conditioner.embedders.0.model.") for key in shapes):
            return Kind("an SDXL refiner")
        fault = channels_fault(shapes)
        encoders = "conditioner.embedders.0.transformer.", "conditioner.embedders.1.model."
        return Kind(fault) if fault else whole(Kind(NAME, FAMILY, "sdxl"), shapes, *encoders)
    if any(key.startswith(LDM_UNET) for key in shapes):
        return None
    if any(key.startswith(("add_embedding.", "label_emb.")) for key in shapes):
        return Kind(
            "an SDXL UNet alone, without VAE and text encoders; give the checkpoint or the diffusers folder"
        )
    if any(key.startswith("conditioner.embedders.") for key in shapes):
        return Kind("text encoders of an SDXL model, without UNet and VAE")
    return None


def examine(path: Path, index: Mapping[str, object]) -> Kind | None:
    """Inpainting and depth models have more input channels than a latent has."""
    fault = examine_unet(path)
    return Kind(fault) if fault else None
