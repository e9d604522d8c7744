"""Says what a run would find missing on this machine before it starts, each fault with its mend."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from lora_foundry.bases.inspect import find_base
from lora_foundry.domain.recipe import Recipe
from lora_foundry.errors import FoundryError
from lora_foundry.settings import Settings

LEAST_DISK = 500 * 1024 * 1024  # what one SD1.5 character took in the system this one replaces


class Finding(NamedTuple):
    """One line of the examination; `mend` says what to do where `ok` is false."""

    subject: str
    ok: bool
    found: str
    mend: str = ""


def examine(settings: Settings, recipe: Recipe) -> list[Finding]:
    """Every check, in the order in which a run would need it."""
    findings = [_python(), _torch(settings.device), _base(settings, recipe)]
    for subject, folder in (("datasets folder", settings.datasets_dir), ("LoRA folder", settings.loras_dir)):
        findings.extend(_folder(subject, folder))
    if recipe.generate.backend == "comfyui":
        findings.extend(_comfyui(settings, recipe))
    return findings


def _comfyui(settings: Settings, recipe: Recipe) -> list[Finding]:
    try:
        from lora_foundry.backends.comfyui.examine import examine_comfyui
    except ModuleNotFoundError as error:
        return [
            Finding("ComfyUI", False, f"{error.name} is not installed", "pip install 'lora-foundry[comfyui]'")
        ]
    found = examine_comfyui(settings.comfyui_url, Path(recipe.model.base).name, settings.comfyui_loras_dir)
    return [Finding(*each) for each in found]


def _python() -> Finding:
    return Finding(
        "Python", sys.version_info >= (3, 11), sys.version.split()[0], "Install Python 3.11 or newer."
    )


def _torch(device: str) -> Finding:
    try:
        import torch
    except ImportError as error:
        return Finding("torch", False, str(error), "Install it for your GPU; the README says how.")
    if not torch.cuda.is_available():
        wanted = device.startswith("cuda")
        mend = "Install a CUDA build of torch (README), or set LORA_FOUNDRY_DEVICE=auto."
        return Finding("torch", not wanted, f"{torch.__version__}, no GPU seen: the CPU computes", mend)
    index = torch.device(device).index or 0 if device.startswith("cuda") else 0
    free, total = torch.cuda.mem_get_info(index)
    name = torch.cuda.get_device_name(index)
    return Finding("torch", True, f"{torch.__version__}, {name}, {free >> 20} of {total >> 20} MiB free")


def _base(settings: Settings, recipe: Recipe) -> Finding:
    subject = f"base model of recipe {recipe.name!r}"
    try:
        base = find_base(recipe.model.base, settings.model_folders)
    except FoundryError as error:
        places = " or ".join(str(folder) for folder in settings.model_folders)
        return Finding(
            subject, False, str(error), f"Put it into {places}, or name its path: --set model.base=PATH."
        )
    return Finding(subject, True, f"{base.path} ({base.family}, {base.layout})")


def _folder(subject: str, folder: Path) -> Iterator[Finding]:
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    probe = existing / ".lora-foundry-doctor"
    try:
        probe.touch()
        probe.unlink()
    except OSError as error:
        mend = "Set LORA_FOUNDRY_HOME to a folder that you can write."
        yield Finding(subject, False, f"{folder}: {error.strerror}", mend)
        return
    free = shutil.disk_usage(existing).free
    enough = free >= LEAST_DISK
    yield Finding(
        subject, enough, f"{folder}, {free >> 20} MiB free", f"Free {LEAST_DISK >> 20} MiB on its disk."
    )
