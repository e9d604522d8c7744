"""How Stable Diffusion 1.x and 2.x is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lora_foundry.families._shared.base import Base
from lora_foundry.families._shared.loading import Loader, load_clip_vocabulary
from lora_foundry.families._shared.unet import told_training


def _tokenizers(base: Base) -> dict[str, Any]:
    """OpenCLIP, the encoder of 2.x, fills its windows with another token."""
    return {"tokenizer": load_clip_vocabulary(pad="!" if base.configuration == "sd2" else "")}


LOADER = Loader(
    pipeline="StableDiffusionPipeline",
    denoiser="unet",
    denoiser_class="UNet2DConditionModel",
    configurations=Path(__file__).parent / "configurations",
    left_out={"feature_extractor": None, "image_encoder": None, "safety_checker": None,
              "requires_safety_checker": False},
    scheduler=told_training,
    tokenizers=_tokenizers,
)  # fmt: skip
