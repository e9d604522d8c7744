"""Finds recipes: those that ship (in `recipes/` and in the folders of the families), a person's own in `<home>/recipes`,
and any other by path. A recipe may say `extends = "NAME"` and then only what differs; a file whose name begins with an
underscore is only there to be extended. Of several that it names, the later ones go over the earlier."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from lora_foundry import families
from lora_foundry.domain.recipe import Recipe, apply_setting, build_recipe, forget_source, help_of
from lora_foundry.errors import InputError, did_you_mean
from lora_foundry.families._shared.registry import family_names, family_package
from lora_foundry.files.storage import write_text

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_DEEPEST = 8  # recipes that extend one another; a person's file needs two or three


def recipe_names(folders: Sequence[Path] = ()) -> tuple[str, ...]:
    """The names of the recipes that ship and of those in `folders`, sorted. A shipped name is never hidden."""
    own = {path.stem for folder in folders for path in _own_files(folder)}
    return tuple(sorted(own | {name for name in _shipped() if not name.startswith("_")}))


def own_recipe(name: str, folders: Sequence[Path]) -> Path | None:
    """The file of a person's own recipe of that name; None for a shipped one or none."""
    if name in _shipped():
        return None
    return next((path for folder in folders for path in _own_files(folder) if path.stem == name), None)


def load_recipe(name_or_file: str, settings: Iterable[str] = (), folders: Sequence[Path] = ()) -> Recipe:
    """The recipe of that name, or the one in that file, with `section.key=value` settings applied.

    folders: where a person's own recipes lie. Raises InputError for an unknown name, an unreadable file, an unknown key
    or an impossible value.
    """
    values = _resolved(name_or_file, tuple(folders), ())
    for setting in settings:
        apply_setting(values, setting)
    return build_recipe(values, name_or_file)


def recipe_toml(recipe: Recipe) -> str:
    """A recipe as a file to start one's own from: it extends this one and repeats each value with what it means, so
    that lines which shall stay as they are can be deleted."""
    lines = [
        f'# Your own recipe: change what you like, delete what shall stay as in "{recipe.name}", and save it as',
        "# <home>/recipes/NAME.toml. Then: lora-foundry create ... --recipe NAME",
        f"extends = {_toml(recipe.name)}",
        f"description = {_toml(recipe.description)}",
        "",
    ]
    sections: list[str] = []
    for name, field in Recipe.model_fields.items():
        value = getattr(recipe, name)
        if isinstance(value, BaseModel):
            sections.append(f"\n[{name}]")
            for key, inner in type(value).model_fields.items():
                sections += _lines(key, getattr(value, key), help_of(inner))
        elif name not in ("name", "description"):
            lines += _lines(name, value, help_of(field))
    return "\n".join([*lines, *sections]) + "\n"


def write_own_recipe(
    folder: Path, name: str, extends: str, description: str, settings: Iterable[str]
) -> Path:
    """Saves changes to a recipe as a person's own, which extends it and says only what differs; a file of that name is
    replaced. Raises InputError for a name that a shipped recipe has or that is none, and for impossible changes.
    """
    if not _NAME.fullmatch(name) or name in _shipped():
        raise InputError(
            f"{name[:80]!r} cannot be the name of your own recipe; take letters, digits, - and _, and no shipped name."
        )
    changes: dict[str, Any] = {}
    beneath: Any = extends
    for setting in settings:
        apply_setting(changes, setting)
    if name == extends:  # changed once more: what it said before stays, under what is new
        present = own_recipe(name, (folder,))
        earlier = tomllib.loads(present.read_text(encoding="utf-8-sig")) if present else {}
        beneath = earlier.pop("extends", extends)
        description = description or str(earlier.pop("description", ""))
        changes = _merged({key: value for key, value in earlier.items() if key != "name"}, changes)
    whole = _beneath(_extended(beneath, name), folder, (folder,), (name,))
    build_recipe(_merged(whole, changes) | {"name": name}, name)
    lines = [f"extends = {_toml(beneath)}"] + ([f"description = {_toml(description)}"] if description else [])
    lines += [f"{key} = {_toml(value)}" for key, value in changes.items() if not isinstance(value, Mapping)]
    for section, values in changes.items():
        if isinstance(values, Mapping):
            lines += ["", f"[{section}]", *(f"{key} = {_toml(value)}" for key, value in values.items())]
    return write_text(folder / f"{name}.toml", "\n".join(lines) + "\n")


def _lines(key: str, value: Any, meaning: str) -> list[str]:
    if value is None:
        return [f"# {key}: {meaning} Not set."]
    return [f"# {meaning}", f"{key} = {_toml(value)}"]


def _toml(value: Any) -> str:
    """A value as TOML: JSON's strings, numbers, booleans and lists are TOML's too."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, tuple | list):
        return "[" + ", ".join(_toml(each) for each in value) + "]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_toml(str(key))} = {_toml(each)}" for key, each in value.items()) + "}"
    return json.dumps(value)


def _resolved(name_or_file: str, folders: tuple[Path, ...], above: tuple[str, ...]) -> dict[str, Any]:
    """The values of a recipe with those of what it extends beneath them."""
    if name_or_file in above or len(above) >= _DEEPEST:
        chain = " -> ".join([*above, name_or_file])
        raise InputError(f"Recipes extend one another in a circle: {chain}; take one `extends` out.")
    text, source, beside = _text(name_or_file, folders)
    try:
        values: dict[str, Any] = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"The recipe {source} is not valid TOML: {error}.") from error
    extended = values.pop("extends", None)
    if extended is None:
        return values
    base = _beneath(_extended(extended, source), beside, folders, (*above, name_or_file))
    if beside is not None:  # a person's file need not say its own name
        values.setdefault("name", Path(name_or_file).stem)
    return _merged(base, values)


def _beneath(
    names: Sequence[str], beside: Path | None, folders: tuple[Path, ...], above: tuple[str, ...]
) -> dict[str, Any]:
    """The values of what a recipe extends: each a known name, or a file beside it."""
    base: dict[str, Any] = {}
    for name in names:
        known = own_recipe(name, folders) is not None or name in _shipped()
        file = None if known or beside is None else beside / name
        found = str(file) if file is not None and file.is_file() else name
        base = _merged(base, _resolved(found, folders, above))
    return base


def _extended(value: Any, source: str) -> list[str]:
    """The names that a recipe extends. Raises InputError."""
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not names or not all(isinstance(each, str) for each in names):
        raise InputError(f'In the recipe {source}, extends must be a name or names, as in extends = "mini".')
    return names


def _merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Tables key by key; anything else of `changes`, lists too, takes the place of what was there."""
    merged = dict(base)
    if "base" in changes and "source" not in changes:
        forget_source(merged)  # the [model] table with a base of its own
    for key, change in changes.items():
        value, old = change, merged.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            value = _merged(old, value)
        merged[key] = value
    return merged


def _text(name_or_file: str, folders: tuple[Path, ...]) -> tuple[str, str, Path | None]:
    """A recipe's text, how to call it in a sentence, and the folder it lies in if it is a person's own."""
    if name_or_file in _shipped():
        return _shipped()[name_or_file], name_or_file, None
    path = own_recipe(name_or_file, folders) or Path(name_or_file).expanduser()
    if path.suffix != ".toml" and not path.is_file():
        hint = did_you_mean(name_or_file, recipe_names(folders))
        raise InputError(f"There is no recipe {name_or_file[:80]!r}; {hint}")
    try:
        return path.read_text(encoding="utf-8-sig"), str(path), path.parent
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise InputError(f"The recipe file {path} cannot be read ({error}).") from error


def _own_files(folder: Path) -> Iterator[Path]:
    if folder.is_dir():
        yield from sorted(path for path in folder.glob("*.toml") if not path.name.startswith((".", "_")))


def _shipped() -> dict[str, str]:
    """The text of every recipe that ships, by name, those of other packages' families too; a family's `recipe.toml` says
    its name inside."""
    packages = [family_package(name) for name in family_names()]
    return _texts(("lora_foundry.recipes", f"{families.__name__}.{families.EXAMPLE}", *packages))


@cache
def _texts(packages: tuple[str, ...]) -> dict[str, str]:
    found: dict[str, str] = {}
    for package in packages:
        for file in resources.files(package).iterdir():
            if file.name.endswith(".toml"):
                text = file.read_text(encoding="utf-8")
                found[str(tomllib.loads(text).get("name", file.name.removesuffix(".toml")))] = text
    return found


def portable_recipe(recipe: str | None, folders: Sequence[Path]) -> str | dict[str, Any] | None:
    """A shipped recipe's name as it is; a file's values, since a worker elsewhere may not read that file."""
    if recipe is None or recipe in recipe_names():
        return recipe
    return load_recipe(recipe, folders=folders).model_dump(mode="json")
