"""Pictures that a person has thrown out of a training set. They stay where they are, so that they can be brought
back; the stages that learn from the set or measure against it leave them out."""

from __future__ import annotations

from datetime import datetime

from pydantic import BaseModel, ConfigDict


class Exclusion(BaseModel):
    """One picture, by its content: a new picture under the same name is not the one that was thrown out."""

    model_config = ConfigDict(frozen=True)

    sha256: str
    reason: str = ""
    at: datetime


class Exclusions(BaseModel):
    """exclusions.json: by file name in images/."""

    model_config = ConfigDict(frozen=True)

    files: dict[str, Exclusion] = {}

    def covers(self, file: str, sha256: str) -> bool:
        """Whether a picture of that name and content is thrown out."""
        found = self.files.get(file)
        return found is not None and found.sha256 == sha256
