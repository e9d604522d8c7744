"""Anima's modules in LoRA files: the paths of the model's own code under `diffusion_model.`, the one form that ComfyUI knows
and the library's reader turns into its own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from torch import nn

from lora_foundry.domain.sections import TrainSection
from lora_foundry.families._shared.names import layer_paths
from lora_foundry.families._shared.targets import PEFT, Target, transformer_targets

FILE_FORMAT = PEFT
TARGETS = {
    "attention": tuple(
        f"{attention}.{part}"
        for attention in ("attn1", "attn2")
        for part in ("to_q", "to_k", "to_v", "to_out.0")
    ),
    "feed_forward": ("ff.net.0.proj", "ff.net.2"),
    "projection": (),
}
_OWN = {
    "transformer_blocks.": "blocks.", "attn1.": "self_attn.", "attn2.": "cross_attn.", "to_q": "q_proj",
    "to_k": "k_proj", "to_v": "v_proj", "to_out.0": "output_proj", "ff.net.0.proj": "mlp.layer1",
    "ff.net.2": "mlp.layer2",
}  # fmt: skip
_BLOCKS = "transformer_blocks."
_MARK = "llm_adapter.out_proj.weight"  # tells an Anima file
_PREFIXES = ("model.diffusion_model.", "diffusion_model.", "net.")


def lora_targets(network: nn.Module, settings: TrainSection) -> list[Target]:
    """The linear layers of the blocks that get a LoRA; the adapter of the words stays as it is."""
    return transformer_targets(network, settings, TARGETS)


def export_name(target: Target) -> str:
    """transformer_blocks.0.attn1.to_q -> diffusion_model.blocks.0.self_attn.q_proj."""
    return f"diffusion_model.{_own_path(target.module)}"


def _own_path(path: str) -> str:
    for theirs, own in _OWN.items():
        path = path.replace(theirs, own)
    return path


def comfyui_names(tensors: Iterable[str]) -> Iterator[str]:
    """Of an Anima file: its own names, in both forms that ComfyUI knows."""
    for path in layer_paths(tensors, _MARK, _PREFIXES):
        yield from (f"diffusion_model.{path}", f"lora_unet_{path.replace('.', '_')}")


def other_forms(part: str, path: str) -> Iterable[str]:
    """The path of the model's own code, which files have."""
    return (_own_path(path),) if part == "transformer" and path.startswith(_BLOCKS) else ()
