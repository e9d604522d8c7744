"""How FLUX.2 Klein is loaded. The library has no converter for the file of its VAE, which is Stable Diffusion's layout
with the statistics of its latents beside it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from lora_foundry.families._shared.base import Base
from lora_foundry.families._shared.loading import Loader, brain_precision, flow_precision
from lora_foundry.families._shared.qwen import load_qwen_vocabulary

_MOVED = {"encoder.quant_conv.": "quant_conv.", "decoder.post_quant_conv.": "post_quant_conv."}


def _tokenizers(base: Base) -> dict[str, Any]:
    return {"tokenizer": load_qwen_vocabulary()}


def _vae_tensors(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """The file's tensors under the library's names."""
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    if any(".down_blocks." in name for name in tensors):
        return dict(tensors)
    moved: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        prefix = next((old for old in _MOVED if name.startswith(old)), "")
        moved[_MOVED[prefix] + name.removeprefix(prefix) if prefix else name] = tensor
    converted: dict[str, Tensor] = convert_ldm_vae_checkpoint(dict(moved), dict(config))
    return converted | {name: tensor for name, tensor in moved.items() if name.startswith("bn.")}


LOADER = Loader(
    pipeline="Flux2KleinPipeline",
    denoiser="transformer",
    denoiser_class="Flux2Transformer2DModel",
    configurations=Path(__file__).parent / "configurations",
    vae_class="AutoencoderKLFlux2",
    vae_tensors=_vae_tensors,
    text_class="Qwen3ForCausalLM",
    tokenizers=_tokenizers,
    training=flow_precision,
    drawing=brain_precision,
    encoding=brain_precision,
)
