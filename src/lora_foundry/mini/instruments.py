"""The two measuring instruments that belong to the miniature model: a reader that says which attributes
a picture shows, and an encoder that says how alike two pictures' characters are. They are trained apart,
on different data, so that the eye which curates is not the eye which grades. Plain torch, read from
safetensors.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from lora_foundry.mini import MODEL_DIR

if TYPE_CHECKING:
    import torch
    from PIL import Image

BATCH = 64


@dataclass(frozen=True)
class AttributeReading:
    """One attribute as read from one picture."""

    value: str
    confidence: float
    index: int


def _networks() -> Any:
    """The network classes; imported late because they need torch."""
    from lora_foundry.mini import networks

    return networks


def load_network(folder: Path, build: str, device: str) -> tuple[Any, dict[str, Any]]:
    """Build the named network from a folder's config.json and fill it from its safetensors file."""
    from safetensors.torch import load_file

    config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    network = getattr(_networks(), build).from_config(config)
    state = {
        name: tensor.float() if tensor.is_floating_point() else tensor
        for name, tensor in load_file(folder / "model.safetensors").items()
    }
    network.load_state_dict(state)
    return network.to(device).eval(), config


def batches_of(images: Sequence[Image.Image], size: int, device: str) -> list[torch.Tensor]:
    """Pictures as float tensors in [-1, 1], brought to the network's size, a batch at a time."""
    import torch
    from PIL import Image as PILImage

    arrays: list[NDArray[np.uint8]] = []
    for image in images:
        picture = image.convert("RGB")
        if picture.size != (size, size):
            larger = min(picture.size) >= size
            picture = picture.resize(
                (size, size), PILImage.Resampling.BOX if larger else PILImage.Resampling.BICUBIC
            )
        arrays.append(np.asarray(picture, dtype=np.uint8))
    batches: list[torch.Tensor] = []
    for start in range(0, len(arrays), BATCH):
        block = torch.from_numpy(np.stack(arrays[start : start + BATCH])).to(device)
        batches.append(block.permute(0, 3, 1, 2).float() / 127.5 - 1.0)
    return batches


class AttributeReader:
    """Reads the attributes of the miniature world from pictures."""

    def __init__(self, network: Any, values: dict[str, tuple[str, ...]], size: int, device: str) -> None:
        self._network = network
        self._size = size
        self._device = device
        self.values = values

    @classmethod
    def load(cls, device: str = "cpu", folder: Path | None = None) -> AttributeReader:
        """The reader that ships with the model, or one from another folder."""
        network, config = load_network(folder or MODEL_DIR / "reader", "AttributeNetwork", device)
        values = {name: tuple(tags) for name, tags in config["attributes"].items()}
        return cls(network, values, int(config["image_size"]), device)

    def probabilities(self, images: Sequence[Image.Image]) -> dict[str, NDArray[np.float32]]:
        """For each attribute an array (pictures, values) of probabilities."""
        import torch

        parts: dict[str, list[NDArray[np.float32]]] = {name: [] for name in self.values}
        with torch.inference_mode():
            for batch in batches_of(images, self._size, self._device):
                for name, logits in self._network(batch).items():
                    chances = torch.softmax(logits.float(), dim=1).cpu().numpy()
                    parts[name].append(cast("NDArray[np.float32]", chances))
        return {
            name: np.concatenate(blocks) if blocks else np.zeros((0, len(self.values[name])), np.float32)
            for name, blocks in parts.items()
        }

    def read(self, images: Sequence[Image.Image]) -> list[dict[str, AttributeReading]]:
        """For each picture the most probable value of every attribute.

        An attribute that a picture does not show (the eyes of a figure seen from behind) is answered too; its
        confidence is then meaningless, so ask only about what the picture should show."""
        chances = self.probabilities(images)
        readings: list[dict[str, AttributeReading]] = []
        for row in range(len(images)):
            reading: dict[str, AttributeReading] = {}
            for name, table in chances.items():
                best = int(table[row].argmax())
                reading[name] = AttributeReading(self.values[name][best], float(table[row, best]), best)
            readings.append(reading)
        return readings


class ImageEncoder:
    """Turns pictures into vectors whose cosine says how alike the characters are, whatever pose and place."""

    def __init__(self, network: Any, size: int, dimension: int, device: str) -> None:
        self._network = network
        self._size = size
        self._device = device
        self.dimension = dimension

    @classmethod
    def load(cls, device: str = "cpu", folder: Path | None = None) -> ImageEncoder:
        """The encoder that ships with the model, or one from another folder."""
        network, config = load_network(folder or MODEL_DIR / "encoder", "EmbeddingNetwork", device)
        return cls(network, int(config["image_size"]), int(config["dimension"]), device)

    def embed(self, images: Sequence[Image.Image]) -> NDArray[np.float32]:
        """One L2-normalised row of float32 for each picture."""
        import torch

        rows: list[NDArray[np.float32]] = []
        with torch.inference_mode():
            for batch in batches_of(images, self._size, self._device):
                rows.append(cast("NDArray[np.float32]", self._network(batch).float().cpu().numpy()))
        return np.concatenate(rows) if rows else np.zeros((0, self.dimension), np.float32)
