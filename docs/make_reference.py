"""Writes the pages of docs/reference that the code can say of itself: recipes.md from the recipe's fields, settings.md
from the settings', commands.md from the commands' own help, memory.md from the memory estimate. A test compares them; run
`python docs/make_reference.py` after a change."""

from __future__ import annotations

import inspect
import json
import tomllib
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import typer
from pydantic import BaseModel
from typer.core import TyperArgument, TyperCommand, TyperGroup, TyperOption

from lora_foundry.cli.app import app
from lora_foundry.domain.recipe import Recipe, help_of
from lora_foundry.domain.sections import TrainSection
from lora_foundry.families._shared.base import Base
from lora_foundry.families._shared.memory import Means, loaded_memory, training_memory, usual_means
from lora_foundry.families._shared.quantised import packing_of
from lora_foundry.families._shared.registry import family_names, family_package, family_part
from lora_foundry.families._shared.streaming import streamed_places
from lora_foundry.recipe_files import load_recipe, recipe_names
from lora_foundry.settings import Settings
from lora_foundry.trainer.memory import CARDS, RESERVE, fit

FOLDER = Path(__file__).parent / "reference"
COMPUTER = 32  # GB of memory of the computer whose cards the memory's page shows

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


MEMORY = f"""# Memory

What training takes of a GPU by the one estimate that the trainer, `doctor` and ComfyUI's handover go by, at the base's full
size, and what `train.memory = "auto"` changes for an NVIDIA card of so many GB, of which {RESERVE:.0f} is left to desktop and
driver, in a computer with {COMPUTER} GB. The estimate's numbers are counted on torch's meta device and hold within a tenth
there, quantised and streamed bases too; on GPUs they are not measured yet: `make gpu` does. `train.needs_mib` replaces it.

What is given up, in this order, until it fits:

1. *batch*: a batch is computed in parts, one after another, before the weights move; with a tenth to spare.
2. *captions first* (`train.cache_captions`): shuffled captions are encoded before the first step, and the text encoders go.
3. *checkpointing* (`train.gradient_checkpointing`), with the whole batch again: activations are computed twice instead of kept.
   Then 2 and 1 with it.
4. *streamed* (`train.streamed`): as many blocks as must be wait in the computer's memory and come to the GPU while others are
   computed. NVIDIA only, and up to half of the computer's memory.
5. *int8*, then *nf4* (`train.quantise`), where the computer's memory is too small for 4 or the GPU cannot stream. `nf4` needs
   bitsandbytes (extra `cuda`).

The first four learn the same, to rounding, only slower; the last one learns on a base that is rounded, and the file is the
same kind of file. [Why in this order](../decisions/0023-small-cards.md). A base is read into the computer's memory in 16 bits
before it goes to the GPU: that much ("to read") must be there in any case, so that Qwen-Image asks for a computer with 48 GB.

Drawing needs no setting: where a card does not hold the base's parts at once, they come to it one after another; where it does
not hold the largest of them, block by block; and where it does not hold a whole picture's decoding, the VAE works in tiles. All
go by the card's size. A language model that encodes captions for a training is streamed where the GPU does not hold it. Not yet
tried on a GPU.

"""
GIB = 1 << 30


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


def memory_page() -> str:
    header = row("recipe", "as it is set", *(f"{card.removesuffix('gb')} GB" for card in CARDS))
    lines = [MEMORY + header, "| --- " * (2 + len(CARDS)) + "|"]
    for family in family_names():
        recipe = tomllib.loads(
            resources.files(family_package(family)).joinpath("recipe.toml").read_text("utf-8")
        )
        lines.append(memory_row(family, load_recipe(recipe["name"])))
    return "\n".join(lines) + "\n"


def memory_row(family: str, recipe: Recipe) -> str:
    """One shipped recipe: what its training takes as it is set, and fitted to each card."""
    configuration = min(path.name for path in family_part(family, "load").LOADER.configurations.iterdir())
    base = Base(
        path=Path("full-size"),
        layout="file",
        family=family,
        name=family,
        identity="",
        configuration=configuration,
    )
    cells = [f"{training_memory(base, recipe.train) / GIB:.1f} GiB"]
    ways = usual_means(base, recipe.train, COMPUTER * GIB)
    for card, size in CARDS.items():
        fitted, _ = fit(recipe.train.model_copy(update={"memory": card}), base, None, ways)
        needed = training_memory(base, fitted) / GIB
        fits = needed <= size - RESERVE
        least = f"no: {needed:.1f} GiB at the least"
        cells.append(f"{needed:.1f} GiB: {', '.join(given_up(fitted, ways))}" if fits else least)
    whole = loaded_memory(base) / GIB
    return row(f"`{recipe.name}`, {recipe.train.resolution} px, {whole:.0f} GiB to read", *cells)


def given_up(fitted: TrainSection, ways: Means) -> Iterator[str]:
    """What a training gives up, in the page's words."""
    repeated = f" x {fitted.accumulation}" if fitted.accumulation > 1 else ""
    yield f"batch {fitted.batch_size}{repeated}"
    if fitted.gradient_checkpointing:
        yield "checkpointing"
    if fitted.cache_captions:
        yield "captions first"
    if fitted.streamed:
        yield f"{len(streamed_places(ways.blocks, fitted.streamed))} of {ways.blocks} blocks streamed"
    if packing := packing_of(fitted):
        yield packing


PAGES = {
    "recipes.md": recipes_page, "settings.md": settings_page, "commands.md": commands_page, "memory.md": memory_page,
}  # fmt: skip


def main() -> None:
    for name, page in PAGES.items():
        (FOLDER / name).write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
