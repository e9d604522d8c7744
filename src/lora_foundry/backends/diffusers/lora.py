"""Looks at a LoRA file before it is put on a base: the library skips keys that the base does not have with a
line in the log, and the LoRA then seems to load but does nothing."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from lora_foundry.errors import BaseModelError, VerificationError
from lora_foundry.families._shared.drawing import Drawing
from lora_foundry.families._shared.names import PREFIXES, modules_by_name
from lora_foundry.files.safetensors import read_header

APPLIED = "applied"
_MAGNITUDE = ".dora_scale"
_DOWN, _UP = (".lora_down.weight", ".lora_A.weight"), (".lora_up.weight", ".lora_B.weight")
_ENDINGS = re.compile(r"\.(lora_|alpha$|dora_scale$|hada_|lokr_)")
_KOHYA_PREFIXES = tuple(prefix for prefixes in PREFIXES.values() for prefix in prefixes)


def check_lora(path: Path, drawing: Drawing) -> list[str]:
    """Every key of the LoRA must name a module of the base; returns the keys. Raises VerificationError naming
    one that does not."""
    try:
        keys = read_header(path).shapes
    except (OSError, BaseModelError) as error:
        raise VerificationError(
            f"{path} is missing or is no whole safetensors file; train the LoRA again."
        ) from error
    known = {name for name, _ in modules_by_name(drawing.pipeline, drawing.base)}
    strange = sorted(key for key in keys if module_of(key) not in known)
    if strange:
        more = f" and {len(strange) - 1} more" if len(strange) > 1 else ""
        raise VerificationError(
            f"The LoRA {path} has the key {strange[0]!r}{more}, which the base model does not have."
        )
    if not keys:
        raise VerificationError(f"The LoRA {path} is empty.")
    return list(keys)


def lora_source(path: Path, keys: Iterable[str], drawing: Drawing) -> str | dict[str, Tensor]:
    """What diffusers loads: the file, or of a DoRA its tensors under peft's names.

    Under kohya's names the library drops a DoRA's magnitudes and draws something else. Under peft's names it reads no
    alpha and takes the commonest rank for it, so the scale alpha / r is folded into the up matrices and all are padded
    with zeros to one rank, which leaves every update up @ down as it was.
    """
    if not any(key.endswith(_MAGNITUDE) for key in keys):
        return str(path)
    places = {id(module): place for place, module in _places(drawing.pipeline)}
    modules = dict(modules_by_name(drawing.pipeline, drawing.base))
    file: dict[str, Tensor] = load_file(path)
    rank = max(len(tensor) for key, tensor in file.items() if key.endswith(_DOWN))
    tensors: dict[str, Tensor] = {}
    for name in dict.fromkeys(module_of(key) for key in file):
        place, down = places[id(modules[name])], _either(file, name, _DOWN).float()
        alpha = float(file.get(f"{name}.alpha", torch.tensor(len(down))))
        up = _either(file, name, _UP).float() * (alpha / len(down))
        missing = rank - len(down)
        magnitude = file[f"{name}{_MAGNITUDE}"].float()
        tensors[f"{place}.lora_A.weight"] = torch.cat([down, down.new_zeros(missing, *down.shape[1:])])
        tensors[f"{place}.lora_B.weight"] = torch.cat([up, up.new_zeros(len(up), missing, *up.shape[2:])], 1)
        # Files have magnitudes as ComfyUI multiplies them, (out, 1) or (out, 1, 1, 1); peft as (out,) or (1, out, 1, 1).
        flat = magnitude.ndim <= 2
        tensors[f"{place}.lora_magnitude_vector"] = (
            magnitude.flatten() if flat else magnitude.reshape(1, -1, 1, 1)
        )
    return tensors


def _either(file: Mapping[str, Tensor], name: str, endings: Iterable[str]) -> Tensor:
    """The tensor of a module under kohya's or peft's name."""
    return next(file[name + ending] for ending in endings if name + ending in file)


def _places(pipeline: Any) -> Iterator[tuple[str, Any]]:
    """Every module of the pipeline by its path there."""
    for part in PREFIXES:
        if getattr(pipeline, part, None) is not None:
            yield from (
                (f"{part}.{path}", module) for path, module in getattr(pipeline, part).named_modules()
            )


def module_of(key: str) -> str:
    """The module that a key of the file belongs to."""
    if key.startswith(_KOHYA_PREFIXES):
        return key.split(".", 1)[0]
    return _ENDINGS.split(key, 1)[0]
