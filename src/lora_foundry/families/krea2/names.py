"""Krea 2's modules in LoRA files: diffusers' paths under `transformer.`, which ComfyUI knows; other programs' files have
the paths of the model's own code."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from torch import nn

from lora_foundry.domain.sections import TrainSection
from lora_foundry.families._shared.targets import PEFT, Target, transformer_targets

FILE_FORMAT = PEFT
TARGETS = {
    "attention": ("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_gate", "attn.to_out.0"),
    "feed_forward": ("ff.gate", "ff.up", "ff.down"),
    "projection": (),
}
_BLOCKS = "transformer_blocks."  # the text's own blocks, which have the same layers, stay as they are
_MARK = "txtfusion.projector.weight"  # tells a file in the model's own layout
_OWN = {
    "attn.to_q": "attn.wq", "attn.to_k": "attn.wk", "attn.to_v": "attn.wv", "attn.to_gate": "attn.gate",
    "attn.to_out.0": "attn.wo", "ff.gate": "mlp.gate", "ff.up": "mlp.up", "ff.down": "mlp.down",
}  # fmt: skip
_THEIRS = {own: path for path, own in _OWN.items()}
_OWN_PATH = re.compile(r"(?:model\.)?(?:diffusion_model\.)?(blocks|txtfusion\.\w+)\.(\d+)\.(.+)\.weight")
_PATH = re.compile(r"(transformer_blocks|text_fusion\.\w+)\.(\d+)\.(.+)")


def lora_targets(network: nn.Module, settings: TrainSection) -> list[Target]:
    """The linear layers of the blocks that get a LoRA."""
    found = transformer_targets(network, settings, TARGETS)
    return [target for target in found if target.module.startswith(_BLOCKS)]


def export_name(target: Target) -> str:
    """transformer_blocks.0.attn.to_q -> transformer.transformer_blocks.0.attn.to_q."""
    return f"transformer.{target.module}"


def comfyui_names(tensors: Iterable[str]) -> Iterator[str]:
    """Of a file in the model's own layout: diffusers' names of the blocks, by each of the prefixes that ComfyUI knows."""
    names = list(tensors)
    if not any(name.endswith(_MARK) for name in names):
        return
    for name in names:
        found = _OWN_PATH.fullmatch(name)
        if found is None or found[3] not in _THEIRS:
            continue
        blocks = found[1].replace("txtfusion", "text_fusion") if "." in found[1] else "transformer_blocks"
        path = f"{blocks}.{found[2]}.{_THEIRS[found[3]]}"
        yield from (
            f"transformer.{path}",
            f"diffusion_model.{path}",
            "lycoris_" + path.replace(".", "_"),
            path,
        )


def other_forms(part: str, path: str) -> Iterable[str]:
    """The path of the model's own code: transformer_blocks.0.attn.to_q -> blocks.0.attn.wq."""
    found = _PATH.fullmatch(path) if part == "transformer" else None
    if found is None or found[3] not in _OWN:
        return ()
    blocks = found[1].replace("text_fusion", "txtfusion") if "." in found[1] else "blocks"
    return (f"{blocks}.{found[2]}.{_OWN[found[3]]}",)
