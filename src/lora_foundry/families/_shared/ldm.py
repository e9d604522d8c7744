"""The original layout of a Stable Diffusion checkpoint, one file with UNet, VAE and text encoders, which SD and SDXL
share."""

from __future__ import annotations

from pathlib import Path

from lora_foundry.families._shared.kinds import Kind, Shapes
from lora_foundry.families._shared.split import read_json
from lora_foundry.files.safetensors import Header

LDM_UNET = "model.diffusion_model.input_blocks."
LDM_DENOISER = "model.diffusion_model."
LDM_VAE = "first_stage_model."


def channels_fault(shapes: Shapes) -> str:
    """What a checkpoint is whose UNet takes more than a latent; empty for a plain one."""
    first = shapes.get(f"{LDM_UNET}0.0.weight", (0, 4))
    if len(first) > 1 and first[1] != 4:
        return f"an inpainting or depth model ({first[1]} input channels)"
    return ""


def examine_unet(path: Path) -> str:
    """What a diffusers folder is whose UNet takes more than a latent; empty for a plain one. Raises BaseModelError for
    a configuration that is missing or damaged."""
    channels = read_json(path / "unet" / "config.json").get("in_channels", 4)
    latent = read_json(path / "vae" / "config.json").get("latent_channels", 4)
    return "" if channels == latent else f"an inpainting or depth model ({channels} input channels)"


def whole(kind: Kind, shapes: Shapes, *encoders: str) -> Kind:
    """The kind, or what a checkpoint of it lacks: its VAE, or a text encoder under one of these names."""
    needed = [("VAE", LDM_VAE), *(("text encoder", prefix) for prefix in encoders)]
    lacks = dict.fromkeys(
        word for word, prefix in needed if not any(key.startswith(prefix) for key in shapes)
    )
    return Kind(f"{kind.name} without its {' and '.join(lacks)}") if lacks else kind


def training_of(header: Header) -> tuple[str, bool | None]:
    """What a checkpoint says about its own training, as prediction type ("epsilon", "v_prediction", or empty) and
    whether its noise schedule ends in pure noise: by marker tensors (NoobAI, and all that descends from it) or
    metadata."""
    said = header.metadata.get("modelspec.prediction_type", "").lower()
    v = "v_pred" in header.shapes or said in {"v", "v_prediction", "vpred"}
    v = v or header.metadata.get("ss_v_parameterization", "").lower() == "true"
    zero = "ztsnr" in header.shapes or header.metadata.get("ss_zero_terminal_snr", "").lower() == "true"
    epsilon = "epsilon" if said == "epsilon" else ""
    return "v_prediction" if v else epsilon, True if zero else None
