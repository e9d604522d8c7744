"""What all sections of a recipe share: they are immutable and strict about their keys, and a field whose value may name
a file of this machine says so where it is declared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Place = Literal["models", "pictures", "workflows"]


class Section(BaseModel):
    """Base of every section: immutable, and strict about its keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


@dataclass(frozen=True)
class LocalPath:
    """Marks a field (`Annotated[str, LocalPath("models")]`) whose value may be the path of a file or folder.

    What comes from elsewhere (a payload, REST, a row by hand) may name only files in the folders of `place`; see
    files.safe_paths. names: a regular expression for values that are looked up by name and are no path.
    """

    place: Place
    names: str = ""


Positive = Annotated[int, Field(ge=1)]
Size = Annotated[int, Field(ge=64, le=2048, multiple_of=8)]
Share = Annotated[float, Field(ge=0, le=1)]
BaseModelPath = Annotated[str, LocalPath("models", names=r"[^/\\\0:~.][^/\\\0:]{0,200}")]
WorkflowPath = Annotated[str, LocalPath("workflows", names=r"[\w-]{1,100}")]
