"""Stable Diffusion's modules in LoRA files: kohya's names, in diffusers' layout."""

from __future__ import annotations

from collections.abc import Iterable

from lora_foundry.families._shared.names import clip_forms
from lora_foundry.families._shared.targets import KOHYA
from lora_foundry.families._shared.unet_names import checkpoint_names as comfyui_names
from lora_foundry.families._shared.unet_targets import kohya_name as export_name
from lora_foundry.families._shared.unet_targets import unet_targets as lora_targets

FILE_FORMAT = KOHYA


def other_forms(part: str, path: str) -> Iterable[str]:
    """Other paths that files may have for a module."""
    return clip_forms(part, path)


__all__ = ["FILE_FORMAT", "comfyui_names", "export_name", "lora_targets", "other_forms"]
