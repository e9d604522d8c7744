"""Which files a request from elsewhere may name. Payloads, REST and rows by hand go through the same checks: what they
read or write lies in the folders that the settings name, links followed, and a refusal is the same whether or not
there is something. The local user's own command line and Python may name anything; what a command names, the workers
of the same home may read too, since it is remembered in the home folder."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from lora_foundry.domain.character import check_name
from lora_foundry.domain.recipe import Recipe
from lora_foundry.domain.sections.base import LocalPath, Place
from lora_foundry.errors import InputError
from lora_foundry.files.storage import read_model, write_model
from lora_foundry.settings import Settings

REMEMBERED = "local_paths.json"
MOST_SHOWN = 80
LONGEST_NAME = 255


class Remembered(BaseModel):
    """Files and folders that this home's own commands named, outside the folders of the settings."""

    paths: tuple[Path, ...] = ()


def path_values(
    values: Mapping[str, Any], kind: type[BaseModel] = Recipe, prefix: str = ""
) -> Iterator[tuple[str, LocalPath, str]]:
    """What may be a path in a recipe's nested values: "section.key", its marker and the value. Empty ones are left out."""
    for name, field in kind.model_fields.items():
        value = values.get(name)
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from path_values(value if isinstance(value, Mapping) else {}, inner, f"{prefix}{name}.")
            continue
        for marker in markers_of(field):
            for each in value.values() if isinstance(value, Mapping) else [value]:
                yield from ((prefix + name, marker, text) for text in _texts(each))


def markers_of(field: FieldInfo) -> list[LocalPath]:
    """The markers of a field, or of what a list or table of it holds."""
    inner = [mark for part in get_args(field.annotation) for mark in getattr(part, "__metadata__", ())]
    return [mark for mark in (*field.metadata, *inner) if isinstance(mark, LocalPath)]


def _texts(value: object) -> list[str]:
    each = value if isinstance(value, list | tuple) else [value]
    return [text for text in each if isinstance(text, str) and text]


def check_recipe_paths(recipe: Recipe, settings: Settings, trusted: Recipe | None = None) -> None:
    """Raises InputError for a path outside the folders of the settings. trusted: the recipe as this machine's own file
    has it, whose values may stay."""
    own = {} if trusted is None else trusted.model_dump()
    known = {(path, value) for path, _, value in path_values(own)}
    for path, marker, value in path_values(recipe.model_dump()):
        if (path, value) in known or _is_name(marker, value):
            continue
        folders = folders_of(marker.place, settings)
        if not is_below(value, folders) and not _is_remembered(value, settings):
            places = " or ".join(str(folder) for folder in folders)
            raise InputError(
                f"{path} = {value[:MOST_SHOWN]!r} is not in {places}, and requests may name nothing else; put it "
                "there, or name it once in a command on this machine."
            )


def _is_name(marker: LocalPath, value: str) -> bool:
    return bool(marker.names and re.fullmatch(marker.names, value))


def folders_of(place: Place, settings: Settings) -> tuple[Path, ...]:
    """Where files of that kind may lie."""
    home = settings.home.expanduser().absolute()
    if place == "workflows":
        return (home / "workflows",)
    if place == "pictures":
        return (settings.datasets_dir, home / "regularisation", home / "references")
    comfyui = () if settings.comfyui is None else (settings.comfyui.expanduser().absolute() / "models",)
    return tuple(dict.fromkeys((*settings.model_folders, settings.loras_dir, *comfyui)))


def is_below(given: str, folders: tuple[Path, ...]) -> bool:
    """Whether an absolute path leads, links followed, into one of the folders or is one of them."""
    try:
        path = Path(given)
        if not path.is_absolute() or any(len(part.encode()) > LONGEST_NAME for part in path.parts):
            return False
        target = path.resolve()
        homes = [folder.resolve() for folder in folders]
    except (OSError, RuntimeError, ValueError):
        return False
    return any(home in (target, *target.parents) for home in homes)


def remember(values: Mapping[str, Any], settings: Settings) -> list[str]:
    """Makes the paths in a local user's recipe values absolute and lets this home's workers read them.

    Returns the changes as "section.key=value". A value that is no file and no folder is left for its reader to judge.
    """
    changes, outside = list[str](), list[Path]()
    for path, marker, value in path_values(values):
        folders = folders_of(marker.place, settings)
        found = Path(value).expanduser().absolute()
        looked_up = _is_name(marker, value) and (
            marker.place == "workflows" or any(_exists(folder / value) for folder in folders)
        )
        if looked_up or not _exists(found):
            continue
        if str(found) != value:
            changes.append(f"{path}={json.dumps(str(found), ensure_ascii=False)}")
        if not is_below(str(found), folders):
            outside.append(found.resolve())
    file = settings.home.expanduser().absolute() / REMEMBERED
    known = (read_model(file, Remembered) or Remembered()).paths
    if new := tuple(dict.fromkeys(each for each in outside if each not in known)):
        write_model(file, Remembered(paths=(*known, *new)))
    return changes


def _is_remembered(given: str, settings: Settings) -> bool:
    known = read_model(settings.home.expanduser().absolute() / REMEMBERED, Remembered)
    try:
        path = Path(given)
        return known is not None and path.is_absolute() and path.resolve() in known.paths
    except (OSError, RuntimeError, ValueError):
        return False


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def readable_picture(settings: Settings, given: str | None) -> Path | None:
    """A picture inside the home or the datasets folder, links followed. Raises InputError for others."""
    if given is None:
        return None
    homes = (settings.home.expanduser(), settings.datasets_dir)
    try:
        path = (settings.datasets_dir / given).resolve()
        allowed = any(home.resolve() in path.parents for home in homes) and path.is_file()
    except (OSError, RuntimeError, ValueError):
        allowed = False
    if not allowed:
        raise InputError(
            f"The payload's reference_image {given[:MOST_SHOWN]!r} is no file inside {homes[0]} or {homes[1]}; "
            "only those are read."
        )
    return path


def inside(root: Path, given: str, what: str) -> Path:
    """`given` as a folder below `root`, links followed. Raises InputError for any that leads out of it."""
    refusal = f"The payload's {what} {given[:MOST_SHOWN]!r} is not a folder inside {root}; only those may be written."
    if "\0" in given or not given.strip():
        raise InputError(refusal)
    try:
        home, folder = root.resolve(), (root / given).resolve()
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(refusal) from error
    if folder.name == "images":
        folder = folder.parent
    if home not in folder.parents:
        raise InputError(refusal)
    for part in folder.relative_to(home).parts:
        check_name(part)
    return folder
