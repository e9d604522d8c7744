"""SDXL's modules in LoRA files: sd-scripts trains SDXL in its original layout, and so do its files speak."""

from __future__ import annotations

import re
from collections.abc import Iterator

from lora_foundry.families._shared.names import clip_forms
from lora_foundry.families._shared.targets import DENOISER, KOHYA, Target
from lora_foundry.families._shared.unet_names import checkpoint_names as comfyui_names
from lora_foundry.families._shared.unet_targets import kohya_name
from lora_foundry.families._shared.unet_targets import unet_targets as lora_targets

FILE_FORMAT = KOHYA
_PLACES: tuple[tuple[str, str], ...] = (
    (r"^down_blocks\.(\d)\.(resnets|attentions)\.(\d)", "input"),
    (r"^up_blocks\.(\d)\.(resnets|attentions)\.(\d)", "output"),
)
_INNER = (
    ("conv1", "in_layers.2"),
    ("conv2", "out_layers.3"),
    ("time_emb_proj", "emb_layers.1"),
    ("conv_shortcut", "skip_connection"),
)
_MIDDLE = (
    ("mid_block.resnets.0", "middle_block.0"),
    ("mid_block.attentions.0", "middle_block.1"),
    ("mid_block.resnets.1", "middle_block.2"),
)


def original_name(path: str) -> str:
    """The path of an SDXL UNet's module in the original layout: down_blocks.1.attentions.0.proj_in ->
    input_blocks.4.1.proj_in. Each block has two layers and a sampler going down, three layers going up."""
    if found := re.match(r"^down_blocks\.(\d)\.downsamplers\.0\.conv$", path):
        return f"input_blocks.{3 * int(found[1]) + 3}.0.op"
    if found := re.match(r"^up_blocks\.(\d)\.upsamplers\.0\.(.*)$", path):
        return f"output_blocks.{3 * int(found[1]) + 2}.2.{found[2]}"
    for old, new in _MIDDLE:
        path = path.replace(old, new)
    for pattern, side in _PLACES:
        if found := re.match(pattern, path):
            layer = 3 * int(found[1]) + int(found[3]) + (side == "input")
            path = f"{side}_blocks.{layer}.{int(found[2] == 'attentions')}{path[found.end() :]}"
    stem, _, last = path.rpartition(".")
    return f"{stem}.{dict(_INNER)[last]}" if last in dict(_INNER) else path


def export_name(target: Target) -> str:
    """down_blocks.1.attentions.0.proj_in of the UNet -> lora_unet_input_blocks_4_1_proj_in."""
    if target.part != DENOISER:
        return kohya_name(target)
    return f"lora_{DENOISER}_" + original_name(target.module).replace(".", "_")


def other_forms(part: str, path: str) -> Iterator[str]:
    """Other paths that files may have for a module."""
    if part == "unet":
        yield original_name(path)
    yield from clip_forms(part, path)


__all__ = ["FILE_FORMAT", "comfyui_names", "export_name", "lora_targets", "original_name", "other_forms"]
