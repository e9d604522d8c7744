"""Which families of base models there are: each is a package with modules of the same names (detect, load, prompts,
draw, names, train, memory), of which one is imported when it is asked for. The packages of this folder are found by
themselves; another package registers its own by an entry point of the group `lora_foundry.families`."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from functools import cache
from importlib import import_module, resources
from importlib.metadata import entry_points
from importlib.util import find_spec
from pkgutil import iter_modules
from typing import Any

from lora_foundry import families
from lora_foundry.errors import BaseModelError, did_you_mean
from lora_foundry.families._shared.kinds import PublishedName

ENTRY_POINTS = "lora_foundry.families"
_registered: dict[str, str] = {}


def register(name: str, package: str) -> None:
    """Adds a family by the name of its package, for as long as the process lives."""
    _registered[name] = package


def unregister(name: str) -> None:
    """Takes back what `register` did."""
    _registered.pop(name, None)


def family_names() -> tuple[str, ...]:
    """Every family, ours first, in a fixed order."""
    return tuple(_packages())


def family_part(family: str, part: str) -> Any:
    """The module `part` of a family, such as "draw". Raises BaseModelError for a family that is not there."""
    packages = _packages()
    if family not in packages:
        raise BaseModelError(
            f"There is no family {family!r} of base models; {did_you_mean(family, packages)}"
        )
    return import_module(f"{packages[family]}.{part}")


def family_package(family: str) -> str:
    """The package that a family is."""
    return _packages()[family]


def families_with(part: str) -> tuple[str, ...]:
    """The families that have the module `part`, which not all need."""
    return tuple(name for name, package in _packages().items() if find_spec(f"{package}.{part}") is not None)


def family_of_recipe(base: str) -> str | None:
    """The family whose own recipes name this base: what a base will be that is not here yet. None for any other."""
    for family, package in _packages().items():
        for file in resources.files(package).iterdir():
            if file.name.endswith(".toml"):
                model = tomllib.loads(file.read_text(encoding="utf-8")).get("model", {})
                if base in (model.get("base"), model.get("train_base")):
                    return family
    return None


def published_name(version: str) -> PublishedName:
    """What other programs call a base of this `ss_base_model_version`; "Other" where no family knows it."""
    for family in family_names():
        names: Mapping[str, PublishedName] = family_part(family, "detect").PUBLISHED
        for start, name in names.items():
            if version.startswith(start):
                return name
    return PublishedName("Other")


def _packages() -> dict[str, str]:
    return {**_installed(), **_registered}


@cache
def _installed() -> dict[str, str]:
    ours = sorted(
        module.name
        for module in iter_modules(families.__path__)
        if not module.name.startswith("_") and module.name != families.EXAMPLE
    )
    theirs = {entry.name: entry.value for entry in entry_points(group=ENTRY_POINTS)}
    return {name: f"{families.__name__}.{name}" for name in ours} | theirs
