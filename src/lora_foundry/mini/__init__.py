"""The bundled miniature model: a Stable Diffusion small enough to ship inside the package, so that every
stage of the pipeline can be run for real on a plain CPU. This module only knows where the model lies and
which attributes its world has; nothing heavy is imported here.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

MODEL_DIR: Path = Path(__file__).resolve().parent / "model"
PICTURE: Path = Path(__file__).resolve().parent / "mira.png"
"""One picture of somebody of this world, for trying what becomes of a single picture."""
_WORLD_FILE = Path(__file__).resolve().parent / "world.json"


@dataclass(frozen=True)
class World:
    """What the miniature model can draw: the attributes, their values as indices, and the words for them."""

    image_size: int
    quality_tags: tuple[str, ...]
    identity: dict[str, tuple[str, ...]]
    """Attributes that make up who a character is, each with its tags in order."""
    shot: dict[str, tuple[str, ...]]
    """Attributes that change from picture to picture, each with its tags in order."""

    @property
    def attributes(self) -> dict[str, tuple[str, ...]]:
        """Identity first, then shot, in the order in which captions name them."""
        return {**self.identity, **self.shot}


@cache
def world() -> World:
    """The vocabulary of the bundled model, read once."""
    raw = json.loads(_WORLD_FILE.read_text(encoding="utf-8"))
    return World(
        image_size=int(raw["image_size"]),
        quality_tags=tuple(raw["quality_tags"]),
        identity={name: tuple(tags) for name, tags in raw["identity"].items()},
        shot={name: tuple(tags) for name, tags in raw["shot"].items()},
    )


__all__ = ["MODEL_DIR", "PICTURE", "World", "world"]
