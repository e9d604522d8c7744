"""`create --cast`: a TOML file that says which characters one LoRA is to draw."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lora_foundry.domain.cast import Member, check_members
from lora_foundry.domain.character import Character, split_tags
from lora_foundry.errors import InputError

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


class CastCharacter(BaseModel):
    """One `[[character]]`; paths are seen from the file's folder."""

    model_config = ConfigDict(extra="forbid")

    name: str
    description: str = ""
    tags: str = ""
    trigger: str = ""
    reference: Path | None = None
    pictures: list[Path] = Field(default_factory=list)


class CastFile(BaseModel):
    """What stands in the file."""

    model_config = ConfigDict(extra="forbid")

    name: str
    character: list[CastCharacter]


class AskedCast(NamedTuple):
    """The cast's name, its members, and the own pictures of those that have some, by name."""

    name: str
    members: tuple[Member, ...]
    pictures: Mapping[str, tuple[Path, ...]]


def read_cast(path: Path) -> AskedCast:
    """Raises InputError with what is wrong and how a cast's file looks."""
    file = path.expanduser().absolute()
    try:
        said = CastFile.model_validate(tomllib.loads(file.read_text(encoding="utf-8-sig")))
    except OSError as error:
        raise InputError(f"The cast {path} cannot be read ({error.strerror}).") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"The cast {path} is no TOML ({error}). It looks like this:\n{EXAMPLE}") from error
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(str(part + 1 if isinstance(part, int) else part) for part in fault["loc"])
        raise InputError(
            f"The cast {path} cannot be used: {where}: {fault['msg']}. It looks like this:\n{EXAMPLE}"
        ) from error
    members = tuple(_member(each, file.parent) for each in said.character)
    check_members(members)
    pictures = {
        member.character.name: tuple(_found(each, file.parent) for each in told.pictures)
        for member, told in zip(members, said.character, strict=True)
        if told.pictures
    }
    return AskedCast(said.name, members, pictures)


def _member(told: CastCharacter, folder: Path) -> Member:
    reference = None if told.reference is None else _found(told.reference, folder)
    if reference is not None and not reference.is_file():
        raise InputError(f"The reference image of {told.name}, {reference}, is no file.")
    character = Character(
        name=told.name,
        description=told.description,
        trigger=told.trigger,
        tags=split_tags(told.tags),
        reference_image=reference,
    )
    return Member(character=character, source="own" if told.pictures else "auto")


def _found(path: Path, folder: Path) -> Path:
    """A path as it is seen from the file's folder. Raises InputError where nothing is there."""
    found = (folder / path.expanduser()).absolute()
    if not found.exists():
        raise InputError(f"The cast's file names {path}, and there is no {found}.")
    return found
