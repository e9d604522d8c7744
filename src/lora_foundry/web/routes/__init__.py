"""The routes, one module a subject; each calls the engine or reads a run's folder, and none speaks SQL.

A module has a `router` and, where the dashboard shows its subject, `PAGES`: the address, the template and script of the
same name, and the entry in the menu. It is found by lying in this folder."""

from __future__ import annotations

import pkgutil
from functools import cache
from importlib import import_module
from typing import Any, NamedTuple


class Page(NamedTuple):
    """name: of the template (NAME.html.jinja) and the module (js/NAME.js). words, icon (an SVG path of 24 by 24) and
    place: its entry in the main menu, if it has one, and where it stands there; below: the entry that it belongs to, by
    the name of its page."""

    address: str
    name: str
    words: str = ""
    icon: str = ""
    place: int = 0
    below: str = ""


@cache
def modules() -> tuple[Any, ...]:
    """Every module of this folder, by name."""
    return tuple(
        import_module(f"{__name__}.{each.name}")
        for each in sorted(pkgutil.iter_modules(__path__), key=lambda each: each.name)
    )
