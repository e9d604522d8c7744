"""The names that LoRA files give to a base's modules, beside those of diffusers: sd-scripts trains SDXL in its
original layout, and so do its files speak."""

from __future__ import annotations

import re

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


def is_sdxl(unet_config: object) -> bool:
    """Whether a UNet's configuration is SDXL's: it is told the picture's size beside a pooled prompt."""
    return getattr(unet_config, "addition_embed_type", None) == "text_time"
