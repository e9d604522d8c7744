"""The commands of a storage that hosts share: fetching a run to this one, and clearing away what nobody uses."""

from __future__ import annotations

from typing import Annotated

import typer

from lora_foundry.cli.tasks import Home, settings_of
from lora_foundry.errors import InputError
from lora_foundry.settings import Settings

storage = typer.Typer(no_args_is_help=True, help="What hosts share that have no folder in common.")


@storage.command()
def fetch(
    name: Annotated[str, typer.Argument(help="The character.")],
    version: Annotated[
        int | None, typer.Option(help="Which of its versions; else the newest.", min=1)
    ] = None,
    home: Home = None,
) -> None:
    """Bring a run's folder to this host, all but its checkpoints, and its LoRA into this host's folder of LoRAs."""
    from lora_foundry.remote.access import bring

    settings = _with_storage(home)
    if not bring(settings, name, version):
        which = "" if version is None else f" in version {version}"
        raise InputError(
            f"{settings.storage} has no {name!r}{which}, or a run is at work on it on this host."
        )
    print(f"{settings.datasets_dir / name} is as {settings.storage} has it.")


@storage.command()
def clean(home: Home = None) -> None:
    """Remove contents that no run has named for a week, such as old checkpoints, and runs that were deleted a month ago."""
    from lora_foundry.remote.access import clean as cleaned
    from lora_foundry.remote.objects import ObjectStore

    settings = _with_storage(home)
    manifests, contents = cleaned(ObjectStore(settings.storage or ""))
    print(
        f"{contents} contents and {manifests} manifests of deleted runs were removed from {settings.storage}."
    )


def _with_storage(home: Home) -> Settings:
    settings = settings_of(home)
    if not settings.storage:
        raise InputError("No storage is set; LORA_FOUNDRY_STORAGE = s3://bucket/prefix names one.")
    return settings
