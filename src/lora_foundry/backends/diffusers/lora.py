"""Looks at a LoRA file before it is put on a base: the library skips keys that the base does not have with a
line in the log, and the LoRA then seems to load but does nothing."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lora_foundry.bases.inspect import read_header
from lora_foundry.errors import BaseModelError, VerificationError

APPLIED = "applied"
_KOHYA = {"unet": "lora_unet_", "text_encoder": "lora_te_"}


def check_lora(path: Path, pipeline: Any) -> None:
    """Every key of the LoRA must name a module of the pipeline. Raises VerificationError naming one that
    does not."""
    try:
        keys = read_header(path).shapes
    except (OSError, BaseModelError) as error:
        raise VerificationError(
            f"{path} is missing or is no whole safetensors file; train the LoRA again."
        ) from error
    known = set(_module_names(pipeline))
    strange = sorted(key for key in keys if _module_of(key) not in known)
    if strange:
        more = f" and {len(strange) - 1} more" if len(strange) > 1 else ""
        raise VerificationError(
            f"The LoRA {path} has the key {strange[0]!r}{more}, which the base model does not have."
        )
    if not keys:
        raise VerificationError(f"The LoRA {path} is empty.")


def _module_names(pipeline: Any) -> Iterable[str]:
    """The names a LoRA may use for each module: kohya's, and those of the diffusers form."""
    for part, prefix in _KOHYA.items():
        for name, _ in getattr(pipeline, part).named_modules():
            # Files always say text_model; whether the encoder's own modules do depends on the library's
            # version.
            forms = {name, f"text_model.{name}"} if part == "text_encoder" else {name}
            for form in forms:
                yield prefix + form.replace(".", "_")
                yield f"{part}.{form}"


def _module_of(key: str) -> str:
    """The module that a key of the file belongs to."""
    if key.startswith(("lora_unet_", "lora_te_")):
        return key.split(".", 1)[0]
    return key.partition(".lora")[0].removesuffix(".alpha")
