"""LoHa and LoKr files on a pipeline: diffusers reads neither for Stable Diffusion, so the library that made the format
puts them on, module by module."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from lora_foundry.backends.diffusers.lora import module_of
from lora_foundry.extras import missing_package
from lora_foundry.families._shared.drawing import Drawing
from lora_foundry.families._shared.names import modules_by_name

_MARKS = (".hada_w", ".lokr_w")


def is_lycoris(names: Iterable[str]) -> bool:
    """Whether a file with tensors of these names is LoHa or LoKr."""
    return any(mark in name for name in names for mark in _MARKS)


@torch.no_grad()
def put_on(path: Path, drawing: Drawing, strength: float) -> list[Any]:
    """Puts the file on the pipeline's modules; each returned module's `restore` takes it off. Raises
    MissingExtraError, KeyError for a module that the pipeline does not have."""
    layers = dict(modules_by_name(drawing.pipeline, drawing.base))
    groups: dict[str, dict[str, Tensor]] = {}
    for key, tensor in load_file(path).items():
        name = module_of(key)
        ending = key.removeprefix(f"{name}.")
        groups.setdefault(name, {})[ending] = tensor
    applied = []
    for name, tensors in groups.items():
        kind = _kind("loha" if any(ending.startswith("hada") for ending in tensors) else "lokr")
        layer = layers[name]
        module = kind.make_module_from_state_dict(
            name, layer, *(tensors.get(ending) for ending in kind.weight_list)
        )
        module.requires_grad_(False)
        module.bypass_mode, module.multiplier = True, strength
        module.to(next(layer.parameters()).device)
        module.apply_to()
        applied.append(module)
    return applied


def _kind(name: str) -> Any:
    try:
        return getattr(
            import_module(f"lycoris.modules.{name}"), {"loha": "LohaModule", "lokr": "LokrModule"}[name]
        )
    except ImportError as error:
        raise missing_package("A LyCORIS file", error) from error
