"""The bundled image encoder as the eye of an image-prompt adapter. Such an adapter does not want one vector a picture
but a row of features from which its resampler picks; this module makes them, the same for training and for drawing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from lora_foundry.mini import MODEL_DIR
from lora_foundry.mini.instruments import batches_of, load_network

if TYPE_CHECKING:
    from PIL import Image

ADAPTER = MODEL_DIR / "ip_adapter" / "ip-adapter-plus_mini.safetensors"


class ImageFeatures:
    """Turns reference pictures into rows of features: an 8x8 map, the places the encoder looks at, and their mean."""

    def __init__(self, device: str = "cpu") -> None:
        self._network, config = load_network(MODEL_DIR / "encoder", "EmbeddingNetwork", device)
        self._size, self._device = int(config["image_size"]), device
        self.width = int(config["widths"][-1])

    def of(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """(n, 69, width) in float32."""
        return torch.cat([self.of_pixels(batch) for batch in batches_of(images, self._size, self._device)])

    def nothing(self) -> torch.Tensor:
        """(1, 69, width): an even grey, which stands for no picture at all."""
        return self.of_pixels(torch.zeros(1, 3, self._size, self._size, device=self._device))

    @torch.inference_mode()
    def of_pixels(self, pixels: torch.Tensor) -> torch.Tensor:
        """The same for pictures (n, 3, size, size) in -1..1."""
        network: Any = self._network
        features = network.trunk(pixels)
        places, mean = network.pool(features)
        return torch.cat([features.flatten(2).transpose(1, 2), places, mean[:, None]], dim=1)
