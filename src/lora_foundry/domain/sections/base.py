"""What all sections of a recipe share: they are immutable and strict about their keys. Each field declares what it
affects, from which every stage's fingerprint follows, and one whose value may name a file of this machine says so."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from inspect import get_annotations
from typing import Annotated, Any, ClassVar, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

LARGEST = 2**53  # what every JSON reader and every library of numbers still holds exactly
Place = Literal["models", "pictures", "workflows"]
Affects = Literal["pictures", "captions", "weights", "scores", "nothing"]
LEVELS: tuple[Affects, ...] = get_args(Affects)
# For `json_schema_extra` of a field that affects something else than its section does.
SCORES: dict[str, Any] = {"affects": "scores"}
NOTHING: dict[str, Any] = {"affects": "nothing"}


class Section(BaseModel):
    """Base of every section: immutable, and strict about its keys.

    AFFECTS: the earliest thing that changes with a field of this section: the training pictures, their captions, the
    trained weights, the scores, or nothing that is kept (how it is computed, what is shown on the way). A field that
    differs says so in its `json_schema_extra`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    AFFECTS: ClassVar[Affects] = "pictures"

    @model_validator(mode="after")
    def _refuse_endless_numbers(self) -> Self:
        for name, value in self:
            if isinstance(value, int) and value > LARGEST:
                raise ValueError(f"{name} is larger than {LARGEST}, which nothing here counts to")
        return self

    def deciding(self, *levels: Affects) -> dict[str, Any]:
        """The fields that affect one of `levels`, as JSON-like values for a fingerprint."""
        names = {name for name, affected in declared(type(self)) if affected in levels}
        return self.model_dump(mode="json", include=names)


def declared(section: type[BaseModel]) -> Iterator[tuple[str, Affects]]:
    """What each field of a section affects: its own word, else that of the class which declares it."""
    for name, field in section.model_fields.items():
        extra = field.json_schema_extra
        own = extra.get("affects") if isinstance(extra, dict) else None
        owner = next(each for each in section.__mro__ if name in get_annotations(each))
        affected = own or getattr(owner, "AFFECTS", "pictures")
        assert affected in LEVELS, (
            f"{section.__name__}.{name} affects {affected!r}, which is not one of {LEVELS}"
        )
        yield name, affected


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
