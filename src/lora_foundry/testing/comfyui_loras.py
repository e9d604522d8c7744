"""How the stub server treats LoRA files: as ComfyUI does, which keeps the weights of a file that is replaced under the
same name until its memory is freed, leaves out unknown keys with nothing but a line in its log, and lets NaN blacken
the picture."""

from __future__ import annotations

import hashlib
import json
import math
import struct
from pathlib import Path
from typing import Any, NamedTuple

_FORMATS = {"F32": "f", "F16": "e", "F64": "d"}
_TAKEN = ("lora_unet_down_blocks_0_", "lora_unet_up_blocks_0_", "lora_te_text_model_", "diffusion_model.")


class Effect(NamedTuple):
    """What a LoRA does to pictures: weights that can be told apart ("" for none), and whether it blackens them."""

    weights: str
    black: bool


class LoraShelf:
    """The LoRA files that a server has in memory."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._loaded: dict[str, Effect] = {}
        self.log: list[str] = []

    def names(self) -> list[str]:
        return sorted(path.name for path in self._folder.glob("*.safetensors")) if self._folder else []

    def forget(self) -> None:
        self._loaded.clear()

    def effects(self, graph: dict[str, Any]) -> list[tuple[Effect, float]]:
        """What the LoRA nodes of a graph do, each with its strength."""
        nodes = [node["inputs"] for node in graph.values() if node["class_type"].startswith("LoraLoader")]
        return [(self._effect(str(inputs["lora_name"])), float(inputs["strength_model"])) for inputs in nodes]

    def _effect(self, name: str) -> Effect:
        if name not in self._loaded and self._folder is not None:
            self._loaded[name] = self._load(self._folder / name)
        return self._loaded.get(name, Effect("", False))

    def _load(self, path: Path) -> Effect:
        data = path.read_bytes()
        (length,) = struct.unpack("<Q", data[:8])
        header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
        digest, changes, black = hashlib.sha256(), False, False
        for key, entry in header.items():
            if key == "__metadata__":
                continue
            if not key.startswith(_TAKEN):
                self.log.append(f"lora key not loaded: {key}\n")
                continue
            start, end = entry["data_offsets"]
            kind = _FORMATS[entry["dtype"]]
            values = struct.unpack(f"<{(end - start) // struct.calcsize(kind)}{kind}", body[start:end])
            black = black or any(math.isnan(value) for value in values)
            changes = changes or (key.endswith("lora_up.weight") and any(values))
            digest.update(body[start:end])
        return Effect(digest.hexdigest() if changes else "", black)
