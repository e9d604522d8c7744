"""How Anima is loaded. The library has it in its modular form only, so that the pipeline is ours and its parts are loaded
one by one, from a folder too. The adapter that turns words into what the transformer reads lies in the model's own file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from lora_foundry.families._shared.base import Base
from lora_foundry.families._shared.loading import (
    Loader,
    brain_precision,
    flow_precision,
    load_vocabulary,
    model_with_tensors,
)
from lora_foundry.families._shared.qwen import language_tensors, load_qwen_vocabulary
from lora_foundry.families._shared.qwen_vae import vae_tensors
from lora_foundry.families._shared.tensors import read_tensors
from lora_foundry.families._shared.vocabularies import T5
from lora_foundry.files.safetensors import read_header

_CONFIGURATIONS = Path(__file__).parent / "configurations"
_ADAPTER = "llm_adapter."


def _tokenizers(base: Base) -> dict[str, Any]:
    from transformers import AutoTokenizer

    if base.layout == "folder":
        return {
            name: AutoTokenizer.from_pretrained(base.path / name, local_files_only=True)
            for name in ("tokenizer", "t5_tokenizer")
        }
    return {"tokenizer": load_qwen_vocabulary(), "t5_tokenizer": load_vocabulary(AutoTokenizer, T5)}


def _text_conditioner(base: Base, dtype: torch.dtype) -> Any:
    """The adapter: from its folder, or from the model's file."""
    from diffusers import AnimaTextConditioner

    if base.layout == "folder":
        return AnimaTextConditioner.from_pretrained(
            base.path,
            subfolder="text_conditioner",
            torch_dtype=dtype,
            local_files_only=True,
            use_safetensors=True,
        )
    prefix = next(
        name.partition(_ADAPTER)[0] + _ADAPTER for name in read_header(base.path).shapes if _ADAPTER in name
    )
    tensors: Mapping[str, torch.Tensor] = {
        name.removeprefix(prefix): tensor for name, tensor in read_tensors(base.path, prefix, dtype).items()
    }
    return model_with_tensors(
        AnimaTextConditioner, LOADER.configuration(base) / "text_conditioner", tensors, base.path
    )


LOADER = Loader(
    pipeline="lora_foundry.families.anima.pipeline:AnimaPipeline",
    assembled=True,
    denoiser="transformer",
    denoiser_class="CosmosTransformer3DModel",
    # A mask for margins, of which there are none, is a channel more; the library's own way of adding it needs torchvision.
    denoiser_options={"in_channels": 17, "concat_padding_mask": False},
    beside=(_ADAPTER,),
    configurations=_CONFIGURATIONS,
    vae_class="AutoencoderKLQwenImage",
    vae_tensors=vae_tensors,
    text_class="Qwen3Model",
    text_tensors=language_tensors,
    more_parts={"text_conditioner": _text_conditioner},
    tokenizers=_tokenizers,
    training=flow_precision,
    drawing=brain_precision,
    encoding=brain_precision,
)
