"""What ComfyUI calls the modules of a Stable Diffusion or SDXL checkpoint: diffusers' names of the UNet's blocks, and
kohya's of the CLIP text encoders, derived from the tensors of the file as ComfyUI does."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

_UNET = "model.diffusion_model."
_CLIP = re.compile(
    r"(?:cond_stage_model|conditioner\.embedders\.0)\.transformer\.text_model\.encoder\.layers\.(.+)"
)
_OPEN_CLIP = re.compile(r"conditioner\.embedders\.1\.model\.transformer\.resblocks\.(\d+)\..+")
_CLIP_PARTS = (
    "self_attn_q_proj",
    "self_attn_k_proj",
    "self_attn_v_proj",
    "self_attn_out_proj",
    "mlp_fc1",
    "mlp_fc2",
)
_RESNET_PARTS = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}


def checkpoint_names(tensors: Iterable[str]) -> Iterator[str]:
    """The names of LoRA modules that ComfyUI finds for a checkpoint with these tensors."""
    names = list(tensors)
    unet = {name.removeprefix(_UNET).removesuffix(".weight") for name in names if name.endswith(".weight")}
    yield from (f"lora_unet_{name.replace('.', '_')}" for name in _diffusers_names(unet))
    for name in names:
        if match := _CLIP.fullmatch(name.removesuffix(".weight")):
            module = f"text_model_encoder_layers_{match.group(1).replace('.', '_')}"
            yield from (f"lora_te_{module}", f"lora_te1_{module}")
        elif match := _OPEN_CLIP.fullmatch(name):
            yield from (f"lora_te2_text_model_encoder_layers_{match.group(1)}_{part}" for part in _CLIP_PARTS)


def _diffusers_names(unet: set[str]) -> Iterator[str]:
    """What diffusers calls the modules of the blocks of a UNet in Stability's layout."""
    places = dict(_places(unet))
    for module in unet:
        parts = module.split(".")
        for length in (4, 3, 2):
            place = places.get(".".join(parts[:length]))
            if place is not None:
                rest = ".".join(parts[length:])
                yield f"{place}.{_RESNET_PARTS.get(rest, rest)}".rstrip(".")
                break


def _places(unet: set[str]) -> Iterator[tuple[str, str]]:
    """Each block of the file and its name in diffusers. Levels end where a block scales the picture."""
    yield from (("input_blocks.0.0", "conv_in"), ("out.2", "conv_out"))
    yield from (("time_embed.0", "time_embedding.linear_1"), ("time_embed.2", "time_embedding.linear_2"))
    yield from (
        ("middle_block.0", "mid_block.resnets.0"),
        ("middle_block.1", "mid_block.attentions.0"),
        ("middle_block.2", "mid_block.resnets.1"),
    )
    level = index = 0
    for number in range(1, _count(unet, "input_blocks")):
        block = f"input_blocks.{number}"
        if f"{block}.0.op" in unet:
            yield f"{block}.0.op", f"down_blocks.{level}.downsamplers.0.conv"
            level, index = level + 1, 0
            continue
        yield f"{block}.0", f"down_blocks.{level}.resnets.{index}"
        yield f"{block}.1", f"down_blocks.{level}.attentions.{index}"
        index += 1
    level = index = 0
    for number in range(_count(unet, "output_blocks")):
        block = f"output_blocks.{number}"
        yield f"{block}.0", f"up_blocks.{level}.resnets.{index}"
        scales = next((slot for slot in (1, 2) if f"{block}.{slot}.conv" in unet), None)
        if scales != 1:
            yield f"{block}.1", f"up_blocks.{level}.attentions.{index}"
        index += 1
        if scales is not None:
            yield f"{block}.{scales}", f"up_blocks.{level}.upsamplers.0"
            level, index = level + 1, 0


def _count(unet: set[str], group: str) -> int:
    numbers = [int(module.split(".")[1]) for module in unet if module.startswith(f"{group}.")]
    return max(numbers, default=-1) + 1
