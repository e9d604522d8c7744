"""Writes the pages of docs/reference that the code can say of itself: recipes.md from the recipe's fields, settings.md
from the settings', commands.md from the commands' own help. A test compares them; run
`python docs/make_reference.py` after a change."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from pathlib import Path

import typer
from pydantic import BaseModel
from typer.core import TyperArgument, TyperCommand, TyperGroup, TyperOption

from lora_foundry.cli.app import app
from lora_foundry.domain.recipe import Recipe, help_of
from lora_foundry.recipe_files import load_recipe, recipe_names
from lora_foundry.settings import Settings

FOLDER = Path(__file__).parent / "reference"

RECIPES = """# Recipes

A recipe is every choice of a run in one TOML file. `lora-foundry recipes` lists those that ship,
`lora-foundry recipes NAME` shows one whole. Change single values with `--set section.key=value`. An unknown key is refused.

## A recipe of your own

A file in `<home>/recipes` (or anywhere, named by its path) says which recipe it extends and what differs:

```toml
extends = "sdxl"
[train]
rank = 16
[generate]
images = 60
```

Saved as `<home>/recipes/mine.toml` it is `--recipe mine`, and the commands, the REST API and the dashboard list it.
`lora-foundry recipes sdxl --toml > mine.toml` writes a file with every value and what it means, to start from.

"""

SETTINGS = """# Settings

Where things are on this machine. All are environment variables; none is needed for a first run.

| variable | meaning |
| --- | --- |
"""

COMMANDS = """# Commands

`lora-foundry --help` and `lora-foundry COMMAND --help` say the same at your terminal; `--version` prints the version.
Exit codes: 0 done; 1 failed, and the same command may succeed later; 2 the input cannot be used (the message says why);
130 stopped with Ctrl-C. A stopped or killed run goes on where it stood when the same command is given again.
"""


def shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False, default=list)
    return text if len(text) <= 60 else text[:57].rstrip() + "..."


def row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def rows(section: type[BaseModel], prefix: str, values: list[BaseModel]) -> list[str]:
    """A table row a field: name, meaning, the value in each shipped recipe."""
    return [
        row(f"`{prefix}{name}`", help_of(field), *(f"`{shown(getattr(each, name))}`" for each in values))
        for name, field in section.model_fields.items()
    ]


def recipes_page() -> str:
    recipes = [load_recipe(name) for name in recipe_names()]
    header = row("field", "meaning", *(f"`{recipe.name}`" for recipe in recipes))
    rule = "| --- | --- |" + " --- |" * len(recipes)
    lines = [f"- `{recipe.name}`: {recipe.description}" for recipe in recipes]
    plain = {name for name in Recipe.model_fields if not isinstance(getattr(recipes[0], name), BaseModel)}
    general = zip(Recipe.model_fields, rows(Recipe, "", list(recipes)), strict=True)
    lines += ["", "## General", "", header, rule, *(line for name, line in general if name in plain)]
    for name in Recipe.model_fields:
        if name not in plain:
            values = [getattr(recipe, name) for recipe in recipes]
            why = (type(values[0]).__doc__ or "").strip().splitlines()[0]
            table = rows(type(values[0]), f"{name}.", values)
            lines += ["", f"## [{name}]", "", why, "", header, rule, *table]
    return RECIPES + "\n".join(lines) + "\n"


def settings_page() -> str:
    lines = [
        row(f"`LORA_FOUNDRY_{name.upper()}`", field.description or "")
        for name, field in Settings.model_fields.items()
    ]
    return SETTINGS + "\n".join(lines) + "\n"


def described(command: TyperCommand | TyperGroup, name: str, level: str) -> Iterator[str]:
    """A heading, what the command does, how it is called, and its options; then the commands below it."""
    arguments = [each for each in command.params if isinstance(each, TyperArgument)]
    options = [each for each in command.params if isinstance(each, TyperOption)]
    words = [f"lora-foundry {name}", *(str(each.name).upper() for each in arguments)]
    nested = command.commands if isinstance(command, TyperGroup) else {}
    yield f"\n{level} {name}\n"
    yield inspect.cleandoc(command.help or "").replace("\n", " ")
    if not nested:
        yield f"\n    {' '.join(words)}{' [OPTIONS]' if options else ''}"
    if arguments or options:
        yield "\n| argument or option | meaning |\n| --- | --- |"
        for argument in arguments:
            yield row(f"`{str(argument.name).upper()}`", str(getattr(argument, "help", "") or ""))
        for option in options:
            default = "" if option.default in (None, False, "", ()) else f" Default: `{option.default}`."
            yield row(", ".join(f"`{each}`" for each in option.opts), (option.help or "") + default)
    for each, below in nested.items():
        yield from described(below, f"{name} {each}", level + "#")


def commands_page() -> str:
    group = typer.main.get_command(app)
    assert isinstance(group, TyperGroup)
    lines = [line for name, each in group.commands.items() for line in described(each, name, "##")]
    return COMMANDS + "\n".join(lines) + "\n"


PAGES = {"recipes.md": recipes_page, "settings.md": settings_page, "commands.md": commands_page}


def main() -> None:
    for name, page in PAGES.items():
        (FOLDER / name).write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
