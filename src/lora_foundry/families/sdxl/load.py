"""How SDXL is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lora_foundry.families._shared.base import Base
from lora_foundry.families._shared.loading import Loader, load_clip_vocabulary
from lora_foundry.families._shared.unet import told_training


def _tokenizers(base: Base) -> dict[str, Any]:
    return {"tokenizer": load_clip_vocabulary(), "tokenizer_2": load_clip_vocabulary(pad="!")}


LOADER = Loader(
    pipeline="StableDiffusionXLPipeline",
    denoiser="unet",
    denoiser_class="UNet2DConditionModel",
    configurations=Path(__file__).parent / "configurations",
    left_out={"feature_extractor": None, "image_encoder": None, "add_watermarker": False},
    scheduler=told_training,
    tokenizers=_tokenizers,
)
