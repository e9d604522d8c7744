"""What was found of a person's own pictures before anything is trained on them, as a report that one can act on:
nothing is thrown out because of it but what cannot be read at all."""

from __future__ import annotations

from collections.abc import Sequence
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

_SHORTLY: dict[FindingCode, str] = {
    "too_small": "small for this recipe",
    "blurred": "blurred",
    "blank": "blank",
    "near_duplicate": "nearly the same as another",
    "several_people": "with several faces",
    "no_person": "without a face",
    "other_person": "perhaps of somebody else",
    "caption_empty": "with an empty caption",
    "caption_foreign": "with a caption that cannot be read",
    "trigger_missing": "without the trigger word in the caption",
    "trigger_changed": "with an earlier trigger word in the caption",
}
_NAMED = 5  # files in a sentence


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

    def summary(self, puts_trigger: bool) -> str:
        """What a person should know before the training, in a sentence or two; empty where nothing was found.

        puts_trigger: whether the trigger word is put into captions that lack it, which is then nothing to look at.
        """
        codes = {each.name: {found.code for found in each.findings} for each in self.pictures}
        unreadable = [name for name, found in codes.items() if "unreadable" in found]
        passed = {"caption_missing", *(("trigger_missing", "trigger_changed") if puts_trigger else ())}
        seen = [found - passed for name, found in codes.items() if name not in unreadable]
        counts = {words: sum(code in found for found in seen) for code, words in _SHORTLY.items()}
        many = sum(bool(found) for found in seen)
        said = []
        if unreadable:
            verb = "file cannot be read and is" if len(unreadable) == 1 else "files cannot be read and are"
            said.append(f"{len(unreadable)} {verb} left out: {_some(unreadable)}.")
        if self.left_out:
            verb = "file is" if len(self.left_out) == 1 else "files are"
            told = [f"{name} ({reason})" for name, reason in self.left_out]
            said.append(f"{len(told)} {verb} left out: {_some(told)}.")
        if many:
            noun = "other" if said else "picture"
            kinds = ", ".join(f"{count} {words}" for words, count in counts.items() if count)
            said.append(f"{many} {noun}{' wants' if many == 1 else 's want'} a look ({kinds}).")
        return " ".join(said)


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
