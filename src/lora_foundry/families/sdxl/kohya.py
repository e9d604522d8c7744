"""What sd-scripts must know of SDXL."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SCRIPT = "sdxl_train_network.py"


def options(config: Mapping[str, Any]) -> dict[str, bool]:
    """Its options for a UNet with this configuration: SDXL's own VAE overflows fp16."""
    return {"no_half_vae": True}
