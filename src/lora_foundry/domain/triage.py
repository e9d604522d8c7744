"""What was found of a person's own pictures before anything is trained on them, as a report that one can act on:
nothing is thrown out because of it but what cannot be read at all."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

FindingCode = Literal[
    "unreadable",
    "too_small",
    "blurred",
    "blank",
    "near_duplicate",
    "several_people",
    "no_person",
    "other_person",
    "caption_missing",
    "caption_empty",
    "caption_foreign",
    "trigger_missing",
    "trigger_changed",
]


class Finding(BaseModel):
    """One thing that is wrong with a picture: a word for programs, a sentence for people, what to do about it. other:
    the picture that it is compared with, where there is one."""

    model_config = ConfigDict(frozen=True)

    code: FindingCode
    text: str
    action: str
    other: str = ""


class TriagedPicture(BaseModel):
    """One picture as it was looked at. size, changed: of the file, by which a later change of it is noticed."""

    model_config = ConfigDict(frozen=True)

    name: str
    size: int
    changed: int
    width: int = 0
    height: int = 0
    findings: tuple[Finding, ...] = ()

    def unreadable(self, path: Path) -> str:
        """Why the picture cannot be read; empty where it can, or where the file has changed since."""
        stat = path.stat()
        if (stat.st_size, stat.st_mtime_ns) != (self.size, self.changed):
            return ""
        return next((each.text for each in self.findings if each.code == "unreadable"), "")


class Triage(BaseModel):
    """triage.json: every own picture in the order of the set."""

    model_config = ConfigDict(frozen=True)

    pictures: tuple[TriagedPicture, ...] = ()
    left_out: tuple[tuple[str, str], ...] = ()

    def counts(self) -> dict[FindingCode, int]:
        """How many pictures have each kind of finding."""
        found: dict[FindingCode, int] = {}
        for picture in self.pictures:
            for code in dict.fromkeys(each.code for each in picture.findings):
                found[code] = found.get(code, 0) + 1
        return found
