"""Qwen-Image's modules in LoRA files: diffusers' paths under `transformer.`; ComfyUI's own layout has the same."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from torch import nn

from lora_foundry.domain.sections import TrainSection
from lora_foundry.families._shared.names import layer_paths
from lora_foundry.families._shared.targets import PEFT, Target, transformer_targets

FILE_FORMAT = PEFT
TARGETS = {
    "attention": (
        "attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0", "attn.add_q_proj", "attn.add_k_proj",
        "attn.add_v_proj", "attn.to_add_out",
    ),
    "feed_forward": ("img_mlp.net.0.proj", "img_mlp.net.2", "txt_mlp.net.0.proj", "txt_mlp.net.2"),
    "projection": (),
}  # fmt: skip
_PREFIXES = ("model.diffusion_model.", "diffusion_model.")
_MARK = "txt_norm.weight"  # tells a Qwen-Image file


def lora_targets(network: nn.Module, settings: TrainSection) -> list[Target]:
    """The linear layers of the blocks that get a LoRA."""
    return transformer_targets(network, settings, TARGETS)


def export_name(target: Target) -> str:
    """transformer_blocks.0.attn.to_q -> transformer.transformer_blocks.0.attn.to_q."""
    return f"transformer.{target.module}"


def comfyui_names(tensors: Iterable[str]) -> Iterator[str]:
    """Of a Qwen-Image file: its own names, by each of the prefixes that ComfyUI knows."""
    for path in layer_paths(tensors, _MARK, _PREFIXES):
        yield from (f"transformer.{path}", "lycoris_" + path.replace(".", "_"), path)
