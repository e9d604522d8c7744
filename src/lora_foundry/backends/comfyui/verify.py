"""Proves on the server that uses it that a published LoRA works: the same seed with and without it must
differ, since a server reports success for a LoRA of which it could load nothing."""

from __future__ import annotations

import numpy as np

from lora_foundry.domain.dataset import ImageRequest
from lora_foundry.domain.lora import LoraUse
from lora_foundry.errors import VerificationError
from lora_foundry.ports import Generator


def prove_effect(generator: Generator, request: ImageRequest, lora: LoraUse, min_change: float) -> float:
    """The mean difference of grey levels that the LoRA makes. Raises VerificationError below `min_change`."""
    plain, changed = (
        np.asarray(next(iter(list(generator.generate([[request]], use)))).image, dtype=np.float32)
        for use in (None, lora)
    )
    change = float(np.abs(plain - changed).mean())
    if change < min_change:
        raise VerificationError(
            f"ComfyUI draws the same picture with {lora.path.name} as without it (mean difference {change:.2f}, "
            f"at least {min_change:.2f} is required); it was not loaded, or it does nothing."
        )
    return change
