"""What all sections of a recipe share: they are immutable and strict about their keys."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field


class Section(BaseModel):
    """Base of every section: immutable, and strict about its keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


Positive = Annotated[int, Field(ge=1)]
Size = Annotated[int, Field(ge=64, le=2048, multiple_of=8)]
Share = Annotated[float, Field(ge=0, le=1)]
