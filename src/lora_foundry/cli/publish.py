"""The command that gives a LoRA to others."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lora_foundry.cli.tasks import Home, settings_of
from lora_foundry.errors import InputError


def publish(
    name: Annotated[str, typer.Argument(help="The character whose LoRA was made and installed here.")],
    to: Annotated[
        str,
        typer.Option(
            "--to",
            help="hf:USER/REPOSITORY (the Hugging Face hub), or zip:FILE for an upload page.",
            metavar="PLACE",
        ),
    ],
    public: Annotated[
        bool, typer.Option("--public", help="On a hub: let everybody see it at once; else only you do.")
    ] = False,
    update: Annotated[
        bool, typer.Option("--update", help="On a hub: into a repository that is there already.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the card and what would be sent; send and write nothing.")
    ] = False,
    home: Home = None,
) -> None:
    """Give a LoRA to others, with pictures, scores, trigger word, recipe and the base's licence; never a local path or a
    reference picture, and with the recipe's `publish.metadata = "minimal"` only what is needed to use it."""
    from lora_foundry.hubs import archive, card, huggingface
    from lora_foundry.hubs.release import gather

    kind, _, place = to.partition(":")
    if kind not in ("hf", "zip") or not place:
        raise InputError(f"--to {to!r} is no place to publish; write hf:USER/REPOSITORY or zip:FILE.")
    if kind == "hf":
        huggingface.check_repository(place)
    release = gather(settings_of(home), name)
    if dry_run:
        text = card.readme(release) if kind == "hf" else card.description(release)
        files = [
            f"{release.name}.safetensors",
            *(f"{card.PICTURES}/{each.name}" for each in release.pictures),
        ]
        print(text + "\n" + "\n".join(files))
    elif kind == "hf":
        address = huggingface.upload(release, place, public=public, update=update)
        print(f"Published {release.name} at {address}.")
    else:
        print(f"Wrote {archive.write(release, Path(place).expanduser().absolute())}.")
