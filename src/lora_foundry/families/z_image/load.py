"""How Z-Image is loaded. Its activations overflow fp16 to black pictures, so that it is drawn in bf16; its language
model, four billion weights, is read in bf16 too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lora_foundry.families._shared.base import Base
from lora_foundry.families._shared.loading import Loader, brain_precision, flow_precision
from lora_foundry.families._shared.qwen import load_qwen_vocabulary


def _tokenizers(base: Base) -> dict[str, Any]:
    return {"tokenizer": load_qwen_vocabulary()}


LOADER = Loader(
    pipeline="ZImagePipeline",
    denoiser="transformer",
    denoiser_class="ZImageTransformer2DModel",
    configurations=Path(__file__).parent / "configurations",
    text_class="Qwen3Model",
    tokenizers=_tokenizers,
    training=flow_precision,
    drawing=brain_precision,
    encoding=brain_precision,
    no_guidance=0.0,
)
