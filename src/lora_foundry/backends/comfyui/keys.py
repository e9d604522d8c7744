"""Tells beforehand which keys of a LoRA file ComfyUI will leave out, since it reports success all the same.

ComfyUI derives the names it takes from the checkpoint's own tensors, and so do we: the names of the file's UNet as
they are (`lora_unet_double_blocks_0_...`), those that diffusers gives to the blocks of SD1.x and SDXL, and kohya's for
the CLIP text encoders.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from lora_foundry.errors import BaseModelError, VerificationError
from lora_foundry.families._shared.names import comfyui_names
from lora_foundry.families._shared.registry import family_names
from lora_foundry.files.safetensors import read_header

# Names that were seen to load whole; what is known where the checkpoint itself cannot be looked into.
_LOADED_PREFIXES = (
    "lora_unet_", "lora_te_", "lora_te1_", "lora_te2_", "lora_te3_", "diffusion_model.",
    "transformer.",
)  # fmt: skip
_UNET = "model.diffusion_model."
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
    """The names of LoRA modules that ComfyUI finds for a checkpoint file with these tensors: those of the file itself,
    and those that it knows of each family."""
    names = list(tensors)
    whole = any(name.startswith(_UNET) for name in names)
    unet = {
        name.removeprefix(_UNET).removesuffix(".weight")
        for name in names
        if name.endswith(".weight") and (not whole or name.startswith(_UNET))
    }
    found = {f"diffusion_model.{module}" for module in unet}
    found |= {f"lora_unet_{module.replace('.', '_')}" for module in unet}
    for family in family_names():
        found.update(comfyui_names(family, names))
    return frozenset(found)
