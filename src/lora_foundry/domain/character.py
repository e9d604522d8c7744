"""A character is what the user describes and what the LoRA will draw; its name becomes folders, files and the
trigger word, so it is checked here, once, for everything a file system or a caption could not bear."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path

from pydantic import BaseModel, ConfigDict, field_validator, model_validator

from lora_foundry.errors import InputError

MAX_NAME = 64
MAX_DESCRIPTION = 2000
_ALLOWED_MARKS = " -_'."
_WINDOWS_DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)", re.IGNORECASE)


class Character(BaseModel):
    """Who is to be drawn.

    name: letters, digits, spaces and - _ ' . of any script, at most 64; becomes the dataset folder.
    trigger: the trigger word, which makes prompts draw the character; defaults to the name in lower case.
    description: comma-separated tags or a sentence; goes into every generation prompt. Own pictures need none.
    tags: identity features for captions; defaults to the description's comma-separated parts.
    reference_image: a picture of the character, which the generated ones are to resemble.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    description: str = ""
    trigger: str = ""
    tags: tuple[str, ...] = ()
    reference_image: Path | None = None

    @field_validator("name")
    @classmethod
    def _check_name(cls, value: str) -> str:
        return check_name(value)

    @field_validator("description")
    @classmethod
    def _check_description(cls, value: str) -> str:
        text = " ".join(value.split())
        if not any(character.isalnum() for character in text):
            text = ""  # whether a run can do without one is for the run to say
        if len(text) > MAX_DESCRIPTION:
            raise InputError(
                f"The description has {len(text)} characters; at most {MAX_DESCRIPTION} are read."
            )
        if "\0" in text:
            raise InputError("The description holds a NUL character; remove it.")
        return text

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, data: object) -> object:
        if not isinstance(data, dict):
            return data
        filled = dict(data)
        if not filled.get("trigger") and isinstance(filled.get("name"), str):
            filled["trigger"] = check_name(filled["name"]).lower()
        if not filled.get("tags") and isinstance(filled.get("description"), str):
            filled["tags"] = split_tags(filled["description"])
        return filled

    @field_validator("trigger")
    @classmethod
    def _check_trigger(cls, value: str) -> str:
        text = " ".join(value.split())
        if not text or "," in text or len(text) > MAX_NAME or not text.isprintable():
            raise InputError(
                f"The trigger {value!r} cannot be used: 1 to {MAX_NAME} characters without a comma."
            )
        return text

    @property
    def slug(self) -> str:
        """The name as files spell it: lower case, spaces as underscores ("Zoë van Dijk" -> "zoë_van_dijk")."""
        return self.name.lower().replace(" ", "_")


def check_name(value: str) -> str:
    """The name in Unicode NFC with single spaces. Raises InputError with what is wrong."""
    if "\0" in value:
        raise InputError("The character's name holds a NUL character; remove it.")
    name = unicodedata.normalize("NFC", " ".join(value.split()))
    if not name:
        raise InputError(
            'The character\'s name is empty; give one, as in: lora-foundry create "Elara" -d "...".'
        )
    if len(name) > MAX_NAME or len(name.encode()) > 2 * MAX_NAME:
        raise InputError(f"The name is {len(name)} characters long; at most {MAX_NAME} fit into file names.")
    for character in name:
        if unicodedata.category(character)[0] not in "LMN" and character not in _ALLOWED_MARKS:
            shown = character if character.isprintable() else f"U+{ord(character):04X}"
            raise InputError(
                f"The name {name!r} holds {shown!r}; use letters, digits, spaces and - _ ' . only."
            )
    if name[0] in ".-" or name[-1] == "." or ".." in name or _WINDOWS_DEVICES.fullmatch(name.split(".")[0]):
        raise InputError(f"The name {name!r} cannot be a folder on every system; choose another.")
    if not any(character.isalnum() for character in name):
        raise InputError(f"The name {name!r} has no letter or digit; choose another.")
    return name


def file_name(text: str) -> str:
    """A LoRA's name as a file name without suffix that every system can hold. Raises InputError."""
    name = re.sub(r"\s+", "_", text).removesuffix(".safetensors")
    try:
        return check_name(name)
    except InputError as error:
        raise InputError(f"The LoRA's file cannot be called {name[:80]!r}. {error}") from error


def split_tags(text: str) -> tuple[str, ...]:
    """Comma- or newline-separated tags, trimmed, empty and repeated ones dropped, order kept."""
    parts = (" ".join(part.split()) for part in re.split(r"[,\n]", text))
    return tuple(dict.fromkeys(part for part in parts if part))
