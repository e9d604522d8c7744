"""A LoRA as the rest of the project knows it: a file, what calls it, and what is known about it."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict


class LoraUse(BaseModel):
    """A LoRA file applied to a generation, at a strength (1.0 = as trained, 0.0 = off)."""

    model_config = ConfigDict(frozen=True)

    path: Path
    strength: float = 1.0


class TrainedLora(BaseModel):
    """What training leaves: the exported file and what it took to make it.

    fingerprint: of everything that went into it; a result with another one is stale.
    """

    model_config = ConfigDict(frozen=True)

    path: Path
    sha256: str
    steps: int
    final_loss: float
    seconds: float
    resumed_from: int = 0
    parameters: int = 0
    fingerprint: str = ""
