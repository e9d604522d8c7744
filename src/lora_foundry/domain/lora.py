"""A LoRA as the rest of the project knows it: a file, what calls it, and what is known about it."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict


class LoraUse(BaseModel):
    """A LoRA file applied to a generation, at a strength (1.0 = as trained, 0.0 = off)."""

    model_config = ConfigDict(frozen=True)

    path: Path
    strength: float = 1.0


class SavedLora(BaseModel):
    """An export kept while training went on: a whole LoRA file in kohya's names, after `step` steps."""

    model_config = ConfigDict(frozen=True)

    step: int
    path: Path
    sha256: str


class MoreTraining(BaseModel):
    """training/more.json: the evaluation found too little of the character, so the training of that fingerprint takes
    more steps than its recipe says, for the `times`-th time."""

    model_config = ConfigDict(frozen=True)

    fingerprint: str
    times: int
    steps: int


class TrainedLora(BaseModel):
    """What training leaves: the exported file and what it took to make it.

    dry_run: nothing was trained, because the recipe asked for that; such a file is never published.
    fingerprint: of everything that went into it; a result with another one is stale. saved: exports kept on the way,
    by step, the last of them being the result itself.
    """

    model_config = ConfigDict(frozen=True)

    path: Path
    sha256: str
    steps: int
    final_loss: float
    seconds: float
    resumed_from: int = 0
    parameters: int = 0
    saved: tuple[SavedLora, ...] = ()
    dry_run: bool = False
    fingerprint: str = ""
