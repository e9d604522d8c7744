"""The commands on ComfyUI workflows: which there are, whether one can work, and one picture drawn by it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

from lora_foundry.cli.tasks import settings_of

if TYPE_CHECKING:
    from lora_foundry.backends.comfyui.options import ComfyUIOptions
    from lora_foundry.domain.recipe import Recipe

workflows = typer.Typer(help="ComfyUI workflows: those that ship, and your own.", no_args_is_help=True)
_out = Console(highlight=False)


@workflows.command("list")
def list_shipped() -> None:
    """The workflows that ship, and what each is told."""
    from lora_foundry.backends.comfyui.workflows import describe, load_workflow, shipped

    for name in shipped():
        _out.print(escape(describe(load_workflow(name))), soft_wrap=True)


@workflows.command()
def check(
    file: Annotated[str, typer.Argument(help="A shipped workflow's name or a .json file.")],
    recipe: Annotated[
        str | None,
        typer.Option("--recipe", "-r", help="Check it with this recipe's size, checkpoint and sampler, too."),
    ] = None,
    changes: Annotated[
        list[str] | None, typer.Option("--set", "-s", help="Change one recipe value. Repeatable.")
    ] = None,
    draw: Annotated[
        Path | None, typer.Option("--draw", help="Draw one picture with it into this file.", metavar="FILE")
    ] = None,
    reference: Annotated[
        Path | None,
        typer.Option("--reference", help="The picture to follow, for a workflow with {{reference}}."),
    ] = None,
    home: Annotated[Path | None, typer.Option("--home", metavar="DIR", help="As for `create`.")] = None,
) -> None:
    """Say what a workflow binds and what cannot work: by itself, with a recipe, on the server. Exit code 2 if it cannot."""
    from lora_foundry.backends.comfyui.ahead import asked_of, checked
    from lora_foundry.backends.comfyui.options import options_for
    from lora_foundry.backends.comfyui.workflows import describe
    from lora_foundry.recipe_files import load_recipe

    settings = settings_of(home)
    chosen = load_recipe(recipe or settings.recipe, changes or [], settings.recipe_folders)
    options = options_for(chosen, settings)
    known = recipe is not None or bool(changes) or draw is not None
    asked = asked_of(chosen, options, reference is not None) if known else None
    workflow, remarks = checked(file, options, asked)
    _out.print(escape(describe(workflow)), soft_wrap=True)
    for remark in sorted(dict.fromkeys(remarks), key=lambda remark: remark.level):  # faults first
        _out.print(f"{remark.level}: {escape(remark.text)}", soft_wrap=True)
    if any(remark.level == "fault" for remark in remarks):
        raise SystemExit(2)
    _out.print("The server can run it.")
    if draw is not None:
        _draw(file, chosen, options, reference, draw)


def _draw(file: str, recipe: Recipe, options: ComfyUIOptions, reference: Path | None, target: Path) -> None:
    """One picture, as a run would draw it."""
    from dataclasses import replace

    from lora_foundry.backends.comfyui.generator import ComfyUIGenerator
    from lora_foundry.domain.dataset import ImageRequest, ReferenceUse

    section = recipe.generate
    fields = ("negative", "width", "height", "steps", "cfg", "sampler", "scheduler")
    words = ", ".join(part for part in (section.prefix, "1girl", section.suffix) if part)
    request = ImageRequest(
        key="check", prompt=words, seed=recipe.seed, **{name: getattr(section, name) for name in fields}
    )
    use = None if reference is None else ReferenceUse(path=reference, strength=section.reference_strength)
    generator = ComfyUIGenerator(replace(options, workflow=file, reference_workflow=file, lends=False))
    try:
        (made,) = generator.generate([[request]], reference=use)
    finally:
        generator.close()
    made.image.save(target)
    _out.print(f"{target}: {made.image.width}x{made.image.height}", soft_wrap=True)
