"""How Krea 2 is loaded: bf16 where the device has it. Of split files only the language of the vision-language model is
read, since prompts have no pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lora_foundry.families._shared.base import Base
from lora_foundry.families._shared.loading import Loader, brain_precision, flow_precision
from lora_foundry.families._shared.qwen import language_tensors, load_qwen_vocabulary
from lora_foundry.families._shared.qwen_vae import vae_tensors


def _tokenizers(base: Base) -> dict[str, Any]:
    return {"tokenizer": load_qwen_vocabulary()}


LOADER = Loader(
    pipeline="Krea2Pipeline",
    denoiser="transformer",
    denoiser_class="Krea2Transformer2DModel",
    configurations=Path(__file__).parent / "configurations",
    vae_class="AutoencoderKLQwenImage",
    vae_tensors=vae_tensors,
    text_class="Qwen3VLTextModel",
    text_tensors=language_tensors,
    tokenizers=_tokenizers,
    training=flow_precision,
    drawing=brain_precision,
    encoding=brain_precision,
    no_guidance=0.0,
)
