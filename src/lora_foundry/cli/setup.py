"""`setup`: brings what a recipe needs to this machine, after saying what it is, how large, and under which licence."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from lora_foundry.errors import FoundryError, InputError

if TYPE_CHECKING:
    from lora_foundry.domain.recipe import Recipe
    from lora_foundry.files.download import Extent, Source
    from lora_foundry.needs import Need
    from lora_foundry.settings import Settings
    from lora_foundry.setup_job import Planned

_out = Console(highlight=False)


def set_up(
    settings: Settings, recipe: Recipe, base: str | None, agreed: bool, only_list: bool, as_json: bool
) -> None:
    """Lists what `recipe` needs, asks, and fetches what is missing.

    base: another place for the base (a path here, hf:..., https://...). Raises InputError where something can neither be
    found nor fetched, and the errors of fetching.
    """
    from lora_foundry.needs import needs_of
    from lora_foundry.setup_job import Planned, wanted_of

    if base is not None:
        _bring_base(settings, recipe, base)
    brought: set[Source] = set()
    while True:  # what belongs to a base may be known only once the base is here
        needs = needs_of(recipe, settings)
        missing = [need for need in needs if need.found is None]
        wanted = wanted_of(needs, brought)
        planned = [Planned(need, _extent(need, only_list)) for need in wanted]
        if not as_json and (planned or not brought):
            _show(needs, planned)
        if only_list or not planned:
            break
        _agree(planned, agreed, as_json)
        _fetch(planned, quiet=as_json)
        brought |= {need.source for need, _ in planned}
    if as_json:
        print(json.dumps([_row(need, planned) for need in needs]))
    by_hand = [need for need in missing if need not in wanted]
    for need in by_hand:
        _say(f"[red]Missing:[/red] {escape(need.what)}. {escape(need.advice)}", as_json)
    if by_hand or (only_list and missing):
        raise SystemExit(1)
    _say(
        f'The recipe {recipe.name!r} has all it needs. Next: lora-foundry create "NAME" -d "1girl, brown hair, ..." '
        f"--recipe {recipe.name}",
        as_json,
    )


def _extent(need: Need, only_list: bool) -> Extent:
    """How large it is; where it is only listed, a sender that cannot be asked is no fault."""
    from lora_foundry.files.download import Extent, extent_of

    try:
        return extent_of(need.source)
    except FoundryError:
        if only_list:
            return Extent(None)
        raise


def _bring_base(settings: Settings, recipe: Recipe, place: str) -> None:
    """The base from where a person says, under the name by which the recipe looks for it."""
    from lora_foundry.files.download import bring, extent_of, fetch, parse_source

    target = settings.model_folders[0] / Path(recipe.model.base).name
    if target.exists():
        raise InputError(f"{target} is there already; delete or rename it first.")
    if place.startswith(("hf:", "http://", "https://")):
        source = parse_source(place, target.name)
        fetch(source, target, extent_of(source))
        return
    bring(Path(place).expanduser().absolute(), target)


def _row(need: Need, planned: list[Planned]) -> dict[str, Any]:
    extent = next((each.extent for each in planned if each.need is need), None)
    return {
        "what": need.what,
        "name": need.source.name,
        "found": None if need.found is None else str(need.found),
        "from": need.source.place,
        "licence": need.source.licence,
        "bytes": None if extent is None else extent.size,
        "sha256": "" if extent is None else extent.sha256,
        "advice": "" if need.found is not None or need.fetchable else need.advice,
    }


def _show(needs: list[Need], planned: list[Planned]) -> None:
    table = Table(box=None, pad_edge=False)
    for title in ("", "what", "file", "size", "licence", "from"):
        table.add_column(title, overflow="fold")
    for need in needs:
        row = _row(need, planned)
        size = _size(row["bytes"]) if row["bytes"] is not None else ""
        state = (
            "[green]here[/green]"
            if need.found
            else "[yellow]to get[/yellow]"
            if need.fetchable
            else "[red]missing[/red]"
        )
        place = str(need.found) if need.found else need.source.place
        table.add_row(
            state, *(escape(each) for each in (need.what, need.source.name, size, need.source.licence, place))
        )
    _out.print(table)


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def _agree(planned: list[Planned], agreed: bool, as_json: bool) -> None:
    """Asks before anything is fetched. Raises InputError where nobody can be asked."""
    total = sum(each.extent.size or 0 for each in planned)
    if agreed:
        return
    if as_json or not sys.stdin.isatty():
        raise InputError(
            f"{_size(total)} would be fetched; run it with --yes to agree to that and to the licences."
        )
    if not typer.confirm(f"Fetch {_size(total)} under these licences?"):
        raise InputError("Nothing was fetched.")


def _fetch(planned: list[Planned], quiet: bool) -> None:
    from lora_foundry.setup_job import fetch_planned

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=_out, disable=quiet) as bars:
        for each in planned:
            need, extent = each
            bar = bars.add_task(escape(need.source.name), total=extent.size)

            def arrived(done: int, total: int | None, bar: Any = bar) -> None:
                bars.update(bar, completed=done, total=total)

            fetch_planned(each, arrived)
            bars.update(bar, completed=extent.size or 1, total=extent.size or 1)


def _say(text: str, as_json: bool) -> None:
    if not as_json:
        _out.print(text, soft_wrap=True)


BaseOption = Annotated[
    str | None,
    typer.Option(
        "--base",
        help="Take the base from here instead: a path, hf:owner/name[/file], or an address.",
        metavar="PLACE",
    ),
]
