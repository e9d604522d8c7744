"""Writes docs/recipes.md from the recipe's own field descriptions, so that the page cannot drift from the code."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import BaseModel

from lora_foundry.domain.recipe import Recipe, help_of
from lora_foundry.recipe_files import load_recipe, recipe_names

INTRODUCTION = """# Recipes

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


def shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False, default=list)
    return text if len(text) <= 60 else text[:57].rstrip() + "..."


def rows(section: type[BaseModel], prefix: str, values: list[BaseModel]) -> list[str]:
    """A table row a field: name, meaning, the value in each shipped recipe."""
    lines = []
    for name, field in section.model_fields.items():
        cells = [
            f"`{prefix}{name}`",
            help_of(field),
            *(f"`{shown(getattr(each, name))}`" for each in values),
        ]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return lines


def main() -> None:
    recipes = [load_recipe(name) for name in recipe_names()]
    header = "| field | meaning | " + " | ".join(f"`{recipe.name}`" for recipe in recipes) + " |"
    rule = "| --- | --- |" + " --- |" * len(recipes)
    lines = [f"- `{recipe.name}`: {recipe.description}" for recipe in recipes]
    plain = {name for name in Recipe.model_fields if not isinstance(getattr(recipes[0], name), BaseModel)}
    lines += ["", "## General", "", header, rule]
    lines += [
        row
        for name, row in zip(Recipe.model_fields, rows(Recipe, "", list(recipes)), strict=True)
        if name in plain
    ]
    for name in Recipe.model_fields:
        if name not in plain:
            values = [getattr(recipe, name) for recipe in recipes]
            why = (type(values[0]).__doc__ or "").strip().splitlines()[0]
            lines += [
                "",
                f"## [{name}]",
                "",
                why,
                "",
                header,
                rule,
                *rows(type(values[0]), f"{name}.", values),
            ]
    target = Path(__file__).parent / "recipes.md"
    target.write_text(INTRODUCTION + "\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
