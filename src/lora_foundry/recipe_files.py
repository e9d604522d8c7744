"""Finds recipes: those that ship with the project by name, a user's own by path."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import resources
from pathlib import Path

from lora_foundry.domain.recipe import Recipe, parse_recipe
from lora_foundry.errors import InputError, did_you_mean


def recipe_names() -> tuple[str, ...]:
    """The names of the shipped recipes."""
    files = resources.files("lora_foundry.recipes").iterdir()
    return tuple(sorted(file.name.removesuffix(".toml") for file in files if file.name.endswith(".toml")))


def load_recipe(name_or_file: str, settings: Iterable[str] = ()) -> Recipe:
    """The shipped recipe of that name or the one in that file, with `section.key=value` settings applied.

    Raises InputError for an unknown name, an unreadable file, an unknown key or an impossible value.
    """
    if name_or_file in recipe_names():
        text = (
            resources.files("lora_foundry.recipes")
            .joinpath(f"{name_or_file}.toml")
            .read_text(encoding="utf-8")
        )
        return parse_recipe(text, name_or_file, settings)
    path = Path(name_or_file).expanduser()
    if path.suffix != ".toml" and not path.is_file():
        raise InputError(f"There is no recipe {name_or_file!r}; {did_you_mean(name_or_file, recipe_names())}")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"The recipe file {path} cannot be read ({error}).") from error
    return parse_recipe(text, str(path), settings)
