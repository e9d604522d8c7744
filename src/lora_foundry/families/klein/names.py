"""FLUX.2 Klein's modules in LoRA files: diffusers' paths under `transformer.`, which ComfyUI knows for all Flux models."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from torch import nn

from lora_foundry.domain.sections import TrainSection
from lora_foundry.families._shared.targets import PEFT, Target, transformer_targets

FILE_FORMAT = PEFT
TARGETS = {
    "attention": (
        "attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0", "attn.add_q_proj", "attn.add_k_proj",
        "attn.add_v_proj", "attn.to_add_out", "attn.to_qkv_mlp_proj", "attn.to_out",
    ),
    "feed_forward": ("ff.linear_in", "ff.linear_out", "ff_context.linear_in", "ff_context.linear_out"),
    "projection": (),
}  # fmt: skip
_BLOCK = re.compile(r"(?:model\.)?(?:diffusion_model\.)?(double|single)_blocks\.(\d+)\.(.+)\.weight")
_DOUBLE = {
    "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "img_attn.proj": ("attn.to_out.0",),
    "txt_attn.proj": ("attn.to_add_out",),
    "img_mlp.0": ("ff.linear_in",),
    "img_mlp.2": ("ff.linear_out",),
    "txt_mlp.0": ("ff_context.linear_in",),
    "txt_mlp.2": ("ff_context.linear_out",),
}
_SINGLE = {"linear1": ("attn.to_qkv_mlp_proj",), "linear2": ("attn.to_out",)}


def lora_targets(network: nn.Module, settings: TrainSection) -> list[Target]:
    """The linear layers of the blocks that get a LoRA."""
    return transformer_targets(network, settings, TARGETS)


def export_name(target: Target) -> str:
    """transformer_blocks.0.attn.to_q -> transformer.transformer_blocks.0.attn.to_q."""
    return f"transformer.{target.module}"


def comfyui_names(tensors: Iterable[str]) -> Iterator[str]:
    """Of a file in ComfyUI's layout: diffusers' names of the blocks, by each of the prefixes that ComfyUI knows."""
    for name in tensors:
        found = _BLOCK.fullmatch(name)
        if found is None:
            continue
        table, prefix = (_DOUBLE, "") if found[1] == "double" else (_SINGLE, "single_")
        for path in table.get(found[3], ()):
            whole = f"{prefix}transformer_blocks.{found[2]}.{path}"
            yield from (f"transformer.{whole}", "lycoris_" + whole.replace(".", "_"), whole)
