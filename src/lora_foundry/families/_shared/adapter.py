"""A training adapter: a LoRA that is added into a distilled base's weights while it is trained and is not in what is
exported. It takes the distillation back, so that what is learnt does not unlearn it; without the adapter the exported
LoRA works on the base as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from lora_foundry.errors import InputError
from lora_foundry.families._shared.base import Base
from lora_foundry.families._shared.loading import loader_of
from lora_foundry.families._shared.names import file_names
from lora_foundry.files.safetensors import read_header

_DOWN, _UP = (".lora_A.weight", ".lora_down.weight"), (".lora_B.weight", ".lora_up.weight")


@torch.no_grad()
def merge_adapter(network: Any, base: Base, path: Path) -> None:
    """Adds the LoRA at `path` to the weights of the base's denoiser, in fp32. Raises InputError for a file that is missing
    or of another base: all of its modules must be found."""
    try:
        read_header(path)
        tensors: dict[str, Tensor] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"train.training_adapter = {str(path)!r} cannot be read: {error}.") from error
    found = {
        name: module
        for place, module in network.named_modules()
        for name in file_names(loader_of(base).denoiser, place, base)
    }
    left = set(tensors)
    for key, tensor in tensors.items():
        if not key.endswith(_DOWN):
            continue
        name = key.removesuffix(_DOWN[0]).removesuffix(_DOWN[1])
        up = next((name + ending for ending in _UP if name + ending in tensors), None)
        module = found.get(name)
        if up is None or module is None:
            continue
        down, high = tensor.float(), tensors[up].float()
        alpha = float(tensors.get(f"{name}.alpha", torch.tensor(len(down))))
        change = (high.flatten(1) @ down.flatten(1)) * (alpha / len(down))
        module.weight.copy_(module.weight.float() + change.reshape(module.weight.shape))
        left -= {key, up, f"{name}.alpha"}
    if left:
        raise InputError(
            f"train.training_adapter = {str(path)!r} does not fit {base.name}: the base has no module for "
            f"{len(left)} of its keys, such as {sorted(left)[0]}."
        )
