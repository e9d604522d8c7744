"""Looks at a LoRA file before it is put on a base: the library skips keys that the base does not have with a
line in the log, and the LoRA then seems to load but does nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from lora_foundry.bases.inspect import read_header
from lora_foundry.bases.names import is_sdxl, original_name
from lora_foundry.errors import BaseModelError, VerificationError

APPLIED = "applied"
_MAGNITUDE = ".dora_scale"
_KOHYA = {
    "unet": ("lora_unet_",),
    "transformer": ("lora_unet_",),
    "text_encoder": ("lora_te_", "lora_te1_"),
    "text_encoder_2": ("lora_te2_",),
}
_PREFIXES = tuple(prefix for prefixes in _KOHYA.values() for prefix in prefixes)


def check_lora(path: Path, pipeline: Any) -> list[str]:
    """Every key of the LoRA must name a module of the pipeline; returns the keys. Raises VerificationError naming
    one that does not."""
    try:
        keys = read_header(path).shapes
    except (OSError, BaseModelError) as error:
        raise VerificationError(
            f"{path} is missing or is no whole safetensors file; train the LoRA again."
        ) from error
    known = {name for name, _ in modules_by_name(pipeline)}
    strange = sorted(key for key in keys if _module_of(key) not in known)
    if strange:
        more = f" and {len(strange) - 1} more" if len(strange) > 1 else ""
        raise VerificationError(
            f"The LoRA {path} has the key {strange[0]!r}{more}, which the base model does not have."
        )
    if not keys:
        raise VerificationError(f"The LoRA {path} is empty.")
    return list(keys)


def lora_source(path: Path, keys: Iterable[str]) -> str | dict[str, Tensor]:
    """What diffusers loads: the file, or of a DoRA its tensors with the magnitudes in the shape that the library wants.
    Files have them as ComfyUI multiplies them, (out, 1) or (out, 1, 1, 1); peft as (out,) or (1, out, 1, 1)."""
    if not any(key.endswith(_MAGNITUDE) for key in keys):
        return str(path)
    tensors: dict[str, Tensor] = load_file(path)
    for key, tensor in tensors.items():
        if key.endswith(_MAGNITUDE):
            tensors[key] = tensor.flatten() if tensor.ndim <= 2 else tensor.reshape(1, -1, 1, 1)
    return tensors


def modules_by_name(pipeline: Any) -> Iterator[tuple[str, Any]]:
    """The pipeline's modules by every name that a LoRA may use for them: kohya's, and those of the diffusers form."""
    for part, prefixes in _KOHYA.items():
        if getattr(pipeline, part, None) is None:
            continue
        network = getattr(pipeline, part)
        original = part == "unet" and is_sdxl(network.config)
        for name, module in network.named_modules():
            # Files always say text_model; whether the encoder's own modules do depends on the library's
            # version.
            forms = {name, f"text_model.{name}"} if part.startswith("text_encoder") else {name}
            forms |= {original_name(name)} if original else set()
            for form in forms:
                yield from ((prefix + form.replace(".", "_"), module) for prefix in prefixes)
                yield f"{part}.{form}", module


def _module_of(key: str) -> str:
    """The module that a key of the file belongs to."""
    if key.startswith(_PREFIXES):
        return key.split(".", 1)[0]
    return key.partition(".lora")[0].removesuffix(".alpha")
