"""What publishing ended with: where the LoRA was installed, or why it was not."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict


class Publication(BaseModel):
    """publication.json: written last by the publish stage. `lora`, `preview` and `metadata` are None if unpublished."""

    model_config = ConfigDict(frozen=True)

    published: bool
    verdict: str
    lora: Path | None = None
    preview: Path | None = None
    metadata: Path | None = None
    sha256: str = ""
    picture_change: float = 0.0
    fingerprint: str = ""
