"""Tells beforehand which keys of a LoRA file ComfyUI will leave out, since it reports success all the same.

ComfyUI derives the names it takes from the checkpoint's own tensors, and so do we: the names of the file's UNet as
they are (`lora_unet_double_blocks_0_...`), those that diffusers gives to the blocks of SD1.x and SDXL, and kohya's for
the CLIP text encoders.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from lora_foundry.errors import BaseModelError, VerificationError
from lora_foundry.families._shared.inspect import read_header

# Names that were seen to load whole; what is known where the checkpoint itself cannot be looked into.
_LOADED_PREFIXES = (
    "lora_unet_", "lora_te_", "lora_te1_", "lora_te2_", "lora_te3_", "diffusion_model.",
    "transformer.",
)  # fmt: skip
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
_SUFFIXES = (
    ".lora_down.weight", ".lora_up.weight", ".lora_mid.weight", ".lora_A.weight", ".lora_B.weight", ".alpha",
    ".dora_scale",
)  # fmt: skip


def read_keys(path: Path) -> list[str]:
    """The tensor names of a LoRA file, from its header alone. Raises VerificationError."""
    try:
        return list(read_header(path).shapes)
    except (OSError, BaseModelError) as error:
        raise VerificationError(f"The LoRA {path} cannot be read: {error}") from error


def check_keys(path: Path, checkpoint: Path | None) -> int:
    """How many keys the file has. Raises VerificationError if ComfyUI would leave any out on this checkpoint.

    checkpoint: the server's file as this machine sees it; None where it does not, when only the form of the names is
    looked at.
    """
    keys = read_keys(path)
    if checkpoint is None:
        lost = [key for key in keys if not key.startswith(_LOADED_PREFIXES)]
    else:
        known = loaded_modules(read_header(checkpoint).shapes)
        lost = [key for key in keys if module_of(key) not in known]
    if lost or not keys:
        what = (
            f"{len(lost)} of the {len(keys)} keys of {path.name}, such as {lost[0]}" if lost else "all of it"
        )
        on = f" on {checkpoint.name}" if checkpoint else ""
        raise VerificationError(
            f"ComfyUI would leave out {what}{on}; the LoRA is of another base model, or its names are not kohya's "
            "(lora_unet_..., lora_te_...)."
        )
    return len(keys)


def module_of(key: str) -> str:
    """The module that a key of a LoRA file belongs to; the key itself where its form is not known. kohya's names have
    their first dot behind it, whatever the kind of network."""
    if key.startswith("lora_"):
        return key.partition(".")[0]
    return next((key.removesuffix(suffix) for suffix in _SUFFIXES if key.endswith(suffix)), key)


def loaded_modules(tensors: Iterable[str]) -> frozenset[str]:
    """The names of LoRA modules that ComfyUI finds for a checkpoint file with these tensors."""
    names = list(tensors)
    whole = any(name.startswith(_UNET) for name in names)
    unet = {
        name.removeprefix(_UNET).removesuffix(".weight")
        for name in names
        if name.endswith(".weight") and (not whole or name.startswith(_UNET))
    }
    found = {f"diffusion_model.{module}" for module in unet}
    found |= {f"lora_unet_{module.replace('.', '_')}" for module in unet}
    found |= {f"lora_unet_{name.replace('.', '_')}" for name in _diffusers_names(unet)}
    for name in names:
        if match := _CLIP.fullmatch(name.removesuffix(".weight")):
            module = f"text_model_encoder_layers_{match.group(1).replace('.', '_')}"
            found |= {f"lora_te_{module}", f"lora_te1_{module}"}
        elif match := _OPEN_CLIP.fullmatch(name):
            found |= {f"lora_te2_text_model_encoder_layers_{match.group(1)}_{part}" for part in _CLIP_PARTS}
    return frozenset(found)


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
