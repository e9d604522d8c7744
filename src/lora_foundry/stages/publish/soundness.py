"""Proves that a LoRA file holds numbers that can do something. Programs that load LoRAs take a file of NaN
or of zeros without a word, and its user is left with black pictures or with none that change."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lora_foundry.errors import BaseModelError, VerificationError
from lora_foundry.files.safetensors import read_header

_TYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": np.uint16}
_OUTER = ("lora_up.weight", "lora_B.weight")  # zero in an untrained LoRA, so they tell whether it learned


def check_numbers(path: Path) -> None:
    """Raises VerificationError unless the file is whole safetensors without NaN or infinity that changes
    something."""
    changes = False
    for name, values in _tensors(path):
        if not np.isfinite(values).all():
            raise VerificationError(f"{path} holds NaN or infinity in {name}; train again at a lower rate.")
        changes |= name.endswith(_OUTER) and bool(values.any())
    if not changes:
        raise VerificationError(
            f"{path} changes nothing: every outer weight of the LoRA is zero; train longer or at a higher rate."
        )


def _tensors(path: Path) -> Iterator[tuple[str, npt.NDArray[np.float32]]]:
    """Name and numbers of every tensor; raises VerificationError for a file that is not whole."""
    try:
        header, data = read_header(path), path.read_bytes()
        if len(data) != header.end:
            raise BaseModelError(f"{path} is longer than its header says.")
    except (OSError, BaseModelError) as error:
        raise VerificationError(f"{path} is not a whole safetensors file ({error}); train again.") from error
    for name, (begin, end) in header.places.items():
        kind = header.types[name]
        if kind not in _TYPES:
            raise VerificationError(f"{path} holds {name} as {kind}, which is no LoRA's; train again.")
        yield name, _numbers(data[header.start + begin : header.start + end], kind)


def _numbers(data: bytes, kind: str) -> npt.NDArray[np.float32]:
    """As float32; bfloat16 is float32 without its lower half. What float32 cannot hold becomes infinite."""
    values = np.frombuffer(data, _TYPES[kind])
    if kind == "BF16":
        return (values.astype(np.uint32) << 16).view(np.float32)
    with np.errstate(over="ignore"):
        return values.astype(np.float32)
