"""What sd-scripts must know of Stable Diffusion 1.x and 2.x."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SCRIPT = "train_network.py"
_WIDTH_OF_V2 = 1024  # of the text embeddings that the UNet reads


def options(config: Mapping[str, Any]) -> dict[str, bool]:
    """Its options for a UNet with this configuration."""
    return {"v2": config.get("cross_attention_dim") == _WIDTH_OF_V2}
