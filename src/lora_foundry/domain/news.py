"""A message to people about a run that is over."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict


class News(BaseModel):
    """One message. `picture` is a file that is there, or None."""

    model_config = ConfigDict(frozen=True)

    title: str
    text: str
    picture: Path | None = None
    failed: bool = False
