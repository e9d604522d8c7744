"""The command line: parses, calls, prints. Everything it can do, the Python API can do as well."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from rich.console import Console
from rich.table import Table

from lora_foundry import __version__
from lora_foundry.cli import agents as cli_agents
from lora_foundry.cli import publish as cli_publish
from lora_foundry.cli import storage as cli_storage
from lora_foundry.cli import tasks as cli_tasks
from lora_foundry.cli import web as cli_web
from lora_foundry.cli import workflows as cli_workflows
from lora_foundry.cli.setup import BaseOption
from lora_foundry.domain.run import Again
from lora_foundry.errors import FoundryError

if TYPE_CHECKING:
    pass

app = typer.Typer(
    name="lora-foundry",
    help="Describe a character; get a LoRA that draws it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
_out = Console(highlight=False)
_err = Console(stderr=True, highlight=False)

DEMO_NAME = "Elara"
DEMO_DESCRIPTION = "1girl, pink hair, twintails, green eyes, pale skin, blue dress, crown"
PICTURE_NAME = "Mira"

Home = Annotated[
    Path | None,
    typer.Option("--home", help="Folder for everything made here; else LORA_FOUNDRY_HOME.", metavar="DIR"),
]
RecipeOption = Annotated[str | None, typer.Option("--recipe", "-r", help="A recipe's name or a TOML file.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", help="Change one recipe value, as in train.rank=8. Repeatable."),
]
PicturesOption = Annotated[
    list[Path] | None,
    typer.Option(
        help="A folder or zip file of own pictures to train on, with the captions and masks that lie beside them; they are "
        "copied, never changed. Repeatable.",
        metavar="PATH",
    ),
]
CastOption = Annotated[
    Path | None,
    typer.Option(
        help="A TOML file with two to six characters that one LoRA is to draw, each from words, a picture or own pictures; in "
        "place of a name.",
        metavar="FILE",
    ),
]
AgainOption = Annotated[
    Again | None,
    typer.Option(
        help="What becomes of a character of that name that was made with other words or settings: `new` keeps it "
        "whole as an earlier version in `versions/NN/` and takes over what fits, `continue` goes on in it, `replace` "
        "removes it. A person is asked, else it is `new`. The very same command always goes on."
    ),
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print one JSON object at the end and nothing else.")
]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Print only the result.")]


def main() -> None:
    """The program. Exit codes: 0 done, 1 failed but worth trying again, 2 the input cannot be used, 130 stopped."""
    try:
        app()
    except FoundryError as error:
        _fail(error, as_json=False)


@contextmanager
def _errors(as_json: bool) -> Iterator[None]:
    """Turns this project's errors into one sentence (or one JSON object) and their exit code; Ctrl-C, too, which
    typer would end without a word."""
    try:
        yield
    except KeyboardInterrupt:
        _err.print("Stopped. Run the same command again to go on from here.")
        raise SystemExit(130) from None
    except FoundryError as error:
        _fail(error, as_json)


def _fail(error: FoundryError, as_json: bool) -> NoReturn:
    if as_json:
        kind = type(error).__name__
        print(
            json.dumps({"status": "failed", "error": str(error), "kind": kind, "retryable": error.retryable})
        )
    else:
        _err.print(f"[red]Error:[/red] {_escape(str(error))}", soft_wrap=True)
    raise SystemExit(error.exit_code)


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def _version(value: bool) -> None:
    if value:
        _out.print(f"lora-foundry {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show it.")
    ] = False,
) -> None:
    """Describe a character; get a LoRA that draws it."""


@app.command()
def create(
    name: Annotated[
        str | None,
        typer.Argument(help="The character's name; becomes folder, file names and trigger word."),
    ] = None,
    description: Annotated[
        str,
        typer.Option(
            "--description",
            "-d",
            help="What the character looks like, as comma-separated tags or a sentence; own pictures need none.",
        ),
    ] = "",
    pictures: PicturesOption = None,
    tags: Annotated[str, typer.Option(help="Identity tags for captions; else the description's parts.")] = "",
    trigger: Annotated[
        str, typer.Option(help="The word that makes prompts draw the character; else the name.")
    ] = "",
    reference: Annotated[
        Path | None,
        typer.Option(
            help="A picture of the character, which the others are to resemble; see generate.reference_*."
        ),
    ] = None,
    cast: CastOption = None,
    recipe: RecipeOption = None,
    settings: SetOption = None,
    seed: Annotated[
        int | None,
        typer.Option(help="One number that fixes the plan, every picture's seed and the evaluation."),
    ] = None,
    output_name: Annotated[
        str | None, typer.Option(help="File name of the LoRA, without suffix; else <name>_<recipe>.")
    ] = None,
    again: AgainOption = None,
    home: Home = None,
    detach: Annotated[
        bool,
        typer.Option(
            "--detach", help="Only put the pipeline's tasks into the task table, for a worker to run."
        ),
    ] = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Make a character's pictures, or take your own, train its LoRA, measure and install it. Run it again to go on after
    a stop."""
    from lora_foundry.cli.create import Wanted, create_here, submit_only

    with _errors(as_json):
        if cast is not None:
            alone = any((name, description, tags, trigger, reference, pictures))
            wanted = Wanted.of_cast(cast, alone, recipe, settings or [], seed, output_name, again)
        else:
            wanted = Wanted.of(
                name,
                description,
                tags,
                trigger,
                recipe,
                settings or [],
                seed,
                output_name,
                reference,
                again,
                pictures or [],
            )
        if detach:
            submit_only(wanted, home, as_json)
        else:
            create_here(wanted, home, as_json, quiet)


@app.command()
def demo(
    from_picture: Annotated[
        bool,
        typer.Option(
            "--from-picture",
            help="Begin with one picture and no word of description: the model draws its character in other poses and places.",
        ),
    ] = False,
    home: Home = None,
    settings: SetOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """The whole pipeline on the bundled miniature model: one to two minutes on two CPU cores, nothing to download."""
    from lora_foundry.cli.create import Wanted, create_here
    from lora_foundry.mini import PICTURE

    with _errors(as_json):
        if from_picture:
            wanted = Wanted.of(PICTURE_NAME, "", recipe="mini", settings=settings or [], reference=PICTURE)
            begun = f"{PICTURE_NAME}, begun with the one picture {PICTURE},"
        else:
            wanted = Wanted.of(DEMO_NAME, DEMO_DESCRIPTION, recipe="mini", settings=settings or [])
            begun = f'{DEMO_NAME}, described as "{DEMO_DESCRIPTION}",'
        opening = (
            f"{begun} becomes a LoRA on the bundled miniature model: one to two minutes on two CPU cores. The pictures appear "
            "in {pictures}."
        )
        create_here(wanted, home, as_json, quiet, opening)


@app.command()
def recipes(
    name: Annotated[str | None, typer.Argument(help="Show every value of this recipe (or file).")] = None,
    settings: SetOption = None,
    as_toml: Annotated[
        bool, typer.Option("--toml", help="Print it as a file to start a recipe of your own from.")
    ] = False,
    home: Home = None,
    as_json: JsonOption = False,
) -> None:
    """List the recipes, or show one with every value and what it means. Your own lie in <home>/recipes."""
    from lora_foundry.api import Foundry
    from lora_foundry.cli.terminal import print_recipe
    from lora_foundry.recipe_files import load_recipe, recipe_names, recipe_toml

    with _errors(as_json):
        folders = Foundry(home).settings.recipe_folders
        if name is not None:
            chosen = load_recipe(name, settings or [], folders)
            if as_toml:
                print(recipe_toml(chosen), end="")
            elif as_json:
                print(chosen.model_dump_json())
            else:
                print_recipe(_out, chosen)
            return
        known = [load_recipe(each, folders=folders) for each in recipe_names(folders)]
        if as_json:
            print(json.dumps([{"name": each.name, "description": each.description} for each in known]))
            return
        table = Table("recipe", "what for", "pictures", "size", "steps", box=None, pad_edge=False)
        for each in known:
            size = f"{each.generate.width}x{each.generate.height}"
            table.add_row(each.name, each.description, str(each.generate.images), size, str(each.total_steps))
        _out.print(table)


@app.command()
def setup(
    recipe: Annotated[str | None, typer.Argument(help="The recipe's name or a TOML file.")] = None,
    base: BaseOption = None,
    yes: Annotated[
        bool,
        typer.Option("--yes", "-y", help="Agree to the sizes and the licences, where nobody can be asked."),
    ] = False,
    only_list: Annotated[
        bool,
        typer.Option(
            "--list", help="Only say what is needed; fetch nothing. Exit code 1 if something is missing."
        ),
    ] = False,
    settings: SetOption = None,
    home: Home = None,
    as_json: JsonOption = False,
) -> None:
    """Fetch what a recipe needs (the base; the VAE, text encoder, vocabulary and training adapter that its family says
    belong to it; taggers and embedders), after saying how large each file is, its licence and where it comes from. What
    belongs to a base of your own is known once the base is here. A download that broke off goes on, SHA-256 is checked
    where the hub tells it, and nothing starts on a disk without room. Bases go into <home>/models, their parts into
    vae/, text_encoders/ and loras/ there, everything else into the hub's own cache, which other programs share."""
    from lora_foundry.api import Foundry
    from lora_foundry.cli.setup import set_up
    from lora_foundry.recipe_files import load_recipe

    with _errors(as_json):
        own = Foundry(home).settings
        chosen = load_recipe(recipe or own.recipe, settings or [], own.recipe_folders)
        set_up(own, chosen, base, yes, only_list, as_json)


@app.command()
def doctor(
    recipe: RecipeOption = None, changes: SetOption = None, home: Home = None, as_json: JsonOption = False
) -> None:
    """Check what a run needs on this machine, and say what to do about each line that fails. Exit code 1 if a line fails."""
    from lora_foundry.api import Foundry
    from lora_foundry.doctor import examine
    from lora_foundry.recipe_files import load_recipe

    with _errors(as_json):
        settings = Foundry(home).settings
        chosen = load_recipe(recipe or settings.recipe, changes or [], settings.recipe_folders)
        findings = examine(settings, chosen)
    if as_json:
        print(json.dumps([finding._asdict() for finding in findings]))
    else:
        for finding in findings:
            mark = "[green]ok[/green]  " if finding.ok else "[red]no[/red]  "
            _out.print(f"{mark}{finding.subject}: {_escape(finding.found)}", soft_wrap=True)
            if not finding.ok:
                _out.print(f"    -> {_escape(finding.fix)}", soft_wrap=True)
    if not all(finding.ok for finding in findings):
        raise SystemExit(1)


# In the order of the help: what a person does first stands first.
app.command()(cli_publish.publish)
app.command()(cli_web.serve)
app.command()(cli_agents.mcp)
app.command()(cli_tasks.worker)
app.command()(cli_tasks.stats)
app.add_typer(cli_tasks.tasks, name="tasks")
app.add_typer(cli_workflows.workflows, name="workflows")
app.add_typer(cli_tasks.db, name="db")
app.add_typer(cli_storage.storage, name="storage")


if __name__ == "__main__":
    main()
