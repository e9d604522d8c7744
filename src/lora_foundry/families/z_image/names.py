"""Z-Image's modules in LoRA files. ComfyUI's own layout has query, key and value in one matrix, so that files name them
as diffusers does, under `transformer.`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from torch import nn

from lora_foundry.domain.sections import TrainSection
from lora_foundry.families._shared.targets import PEFT, Target, transformer_targets

FILE_FORMAT = PEFT
TARGETS = {
    "attention": ("attention.to_q", "attention.to_k", "attention.to_v", "attention.to_out.0"),
    "feed_forward": ("feed_forward.w1", "feed_forward.w2", "feed_forward.w3"),
    "projection": (),
}
_PREFIXES = ("model.diffusion_model.", "diffusion_model.")
_SPLIT = {
    "attention.qkv": ("attention.to_q", "attention.to_k", "attention.to_v"),
    "attention.out": ("attention.to_out.0",),
}
_SAME = ("feed_forward.w1", "feed_forward.w2", "feed_forward.w3", "adaLN_modulation.0")


def lora_targets(network: nn.Module, settings: TrainSection) -> list[Target]:
    """The linear layers of the blocks that get a LoRA."""
    return transformer_targets(network, settings, TARGETS)


def export_name(target: Target) -> str:
    """layers.0.attention.to_q -> transformer.layers.0.attention.to_q.

    ComfyUI derives `lora_unet_...` from its own layout and drops such a name for query, key and value; by this one it
    knows the modules of diffusers, whose own form it is."""
    return f"transformer.{target.module}"


def comfyui_names(tensors: Iterable[str]) -> Iterator[str]:
    """Of a file in ComfyUI's layout: diffusers' names of the blocks, by each of the prefixes that ComfyUI knows."""
    for name in tensors:
        module = name.removesuffix(".weight")
        for prefix in _PREFIXES:
            module = module.removeprefix(prefix)
        found = [module] if module.endswith(_SAME) else []
        for fused, parts in _SPLIT.items():
            if module.endswith(f".{fused}"):
                found += [module.removesuffix(fused) + part for part in parts]
        for path in found:
            yield from (
                f"transformer.{path}",
                f"diffusion_model.{path}",
                "lycoris_" + path.replace(".", "_"),
                path,
            )
