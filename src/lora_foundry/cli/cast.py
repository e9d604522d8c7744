"""`create --cast`: a TOML file that says which characters one LoRA is to draw."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, ValidationError

from lora_foundry.domain.cast import Member, check_members
from lora_foundry.domain.character import Character, split_tags
from lora_foundry.errors import InputError, did_you_mean

EXAMPLE = """name = "Trio"

[[character]]
name = "Elara"
description = "1girl, brown hair, long hair, blue eyes, red dress, crown"

[[character]]
name = "Kai"
reference = "kai.png"

[[character]]
name = "Zo"
pictures = ["photos/zo"]
"""


def _listed(value: object) -> object:
    return [value] if isinstance(value, str) else value


Name = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]


class CastCharacter(BaseModel):
    """One `[[character]]`; paths are seen from the file's folder. One path of pictures may stand without a list."""

    model_config = ConfigDict(extra="forbid")

    name: Name
    description: str = ""
    tags: str = ""
    trigger: str = ""
    reference: Path | None = None
    pictures: Annotated[list[Path], BeforeValidator(_listed)] = Field(default_factory=list)


class CastFile(BaseModel):
    """What stands in the file."""

    model_config = ConfigDict(extra="forbid")

    name: Name
    character: list[CastCharacter] = Field(min_length=1)


class AskedCast(NamedTuple):
    """The cast's name, its members, and the own pictures of those that have some, by name."""

    name: str
    members: tuple[Member, ...]
    pictures: Mapping[str, tuple[Path, ...]]


def read_cast(path: Path) -> AskedCast:
    """Raises InputError with what is wrong; with how a cast's file looks where it is none at all."""
    file = path.expanduser().absolute()
    try:
        written = tomllib.loads(file.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise InputError(f"The cast {path} cannot be read ({error.strerror}).") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"The cast {path} is no TOML ({error}). It looks like this:\n{EXAMPLE}") from error
    try:
        said = CastFile.model_validate(written)
    except ValidationError as error:
        # A misspelt key explains the one that is missing.
        faults = sorted(error.errors(), key=lambda fault: fault["type"] != "extra_forbidden")
        raise InputError(_sentence(faults[0]["loc"], faults[0]["type"], written)) from error
    members = tuple(_member(each, file.parent) for each in said.character)
    check_members(members)
    pictures = {
        member.character.name: tuple(_found(each, file.parent) for each in told.pictures)
        for member, told in zip(members, said.character, strict=True)
        if told.pictures
    }
    return AskedCast(said.name, members, pictures)


def _sentence(where: tuple[int | str, ...], kind: str, written: Mapping[str, Any]) -> str:
    """What is wrong at one place of the file, and what to write instead."""
    if len(where) > 2:
        return _of_a_character(where, kind, written["character"][where[1]])
    value = written.get(str(where[0]))
    if where[0] == "name":
        return 'The LoRA needs a name: write name = "Trio" in the first line.'
    if kind == "extra_forbidden":
        if isinstance(value, list | dict):
            return f"Write [[character]], not {f'[[{where[0]}]]' if isinstance(value, list) else f'[{where[0]}]'}."
        return f"A cast has no {where[0]!r}; {did_you_mean(str(where[0]), CastFile.model_fields)}"
    if isinstance(value, dict):
        return "Write [[character]], not [character]."
    return f"The cast has no characters. It looks like this:\n{EXAMPLE}"


def _of_a_character(where: tuple[int | str, ...], kind: str, written: Mapping[str, Any]) -> str:
    """The same of one `[[character]]`: where is ("character", index, key, ...)."""
    key, name = str(where[2]), written.get("name")
    who = name if isinstance(name, str) and name.strip() else f"Character {int(where[1]) + 1}"
    if kind == "extra_forbidden":
        return f"{who} has no {key!r}; {did_you_mean(key, CastCharacter.model_fields)}"
    if key == "name":
        return f'{who} needs a name: write name = "Elara" below its [[character]].'
    wanted = {"reference": "a path in quotes", "pictures": "a path in quotes, or a list of them"}
    return f"{who}'s {key!r} must be {wanted.get(key, 'words in quotes')}."


def _member(told: CastCharacter, folder: Path) -> Member:
    reference = None if told.reference is None else _found(told.reference, folder)
    if reference is not None and not reference.is_file():
        raise InputError(f"The reference image of {told.name}, {reference}, is no file.")
    try:
        character = Character(
            name=told.name,
            description=told.description,
            trigger=told.trigger,
            tags=split_tags(told.tags),
            reference_image=reference,
        )
    except InputError as error:
        raise InputError(f"{told.name}: {error}") from error
    return Member(character=character, source="own" if told.pictures else "auto")


def _found(path: Path, folder: Path) -> Path:
    """A path as it is seen from the file's folder. Raises InputError where nothing is there."""
    found = (folder / path.expanduser()).absolute()
    if not found.exists():
        raise InputError(f"The cast's file names {path}, and there is no {found}.")
    return found
