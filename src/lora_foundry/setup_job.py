"""Brings to this machine what a recipe needs: for the command `setup`, which shows bars, and as the child process of a
server, whose page shows them. What was broken off goes on when it is called again."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from pydantic import BaseModel

from lora_foundry.domain.recipe import Recipe
from lora_foundry.domain.run import ProgressEvent
from lora_foundry.errors import InputError
from lora_foundry.files.download import Extent, Progress, Source, extent_of, fetch, fetch_cached
from lora_foundry.needs import Need, needs_of
from lora_foundry.settings import Settings

ENTRY = "lora_foundry.setup_job:run"
_PAUSE = 0.3  # seconds between two words on how much has come


class Planned(NamedTuple):
    """Something to fetch and how large it is."""

    need: Need
    extent: Extent


class SetupWork(BaseModel):
    """All that a child needs to know."""

    recipe: Recipe
    settings: Settings


def wanted_of(needs: Iterable[Need], brought: set[Source]) -> list[Need]:
    """What of these is not here, can be fetched and was not fetched before."""
    return [need for need in needs if need.found is None and need.fetchable and need.source not in brought]


def fetch_planned(planned: Planned, arrived: Progress) -> None:
    """Brings one thing to its place; `arrived` hears of the bytes. Raises what `fetch` raises."""
    need, extent = planned
    if need.target is None:
        fetch_cached(need.source, extent, arrived)
    else:
        fetch(need.source, need.target, extent, arrived)


def run(work: dict[str, Any], tell: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Fetches all that is missing; returns how much that was. Raises InputError for what has to be brought by hand."""
    job = SetupWork.model_validate(work)
    brought: set[Source] = set()
    before = 0
    while True:  # what belongs to a base may be known only once the base is here
        needs = needs_of(job.recipe, job.settings)
        wanted = wanted_of(needs, brought)
        if not wanted:
            break
        planned = [Planned(need, extent_of(need.source)) for need in wanted]
        total = before + sum(each.extent.size or 0 for each in planned)
        for each in planned:
            _tell(tell, each, before, 0, total)
            fetch_planned(each, _now_and_then(tell, each, before, total))
            brought.add(each.need.source)
            before += each.extent.size or 0
    by_hand = [need for need in needs if need.found is None]
    if by_hand:
        raise InputError(f"{by_hand[0].what} is missing. {by_hand[0].advice}")
    return {"bytes": before}


def _now_and_then(
    tell: Callable[[dict[str, Any]], None], planned: Planned, before: int, whole: int
) -> Progress:
    last = 0.0

    def arrived(done: int, total: int | None) -> None:
        nonlocal last
        if time.monotonic() - last > _PAUSE:
            last = time.monotonic()
            _tell(tell, planned, before, done, whole)

    return arrived


def _tell(
    tell: Callable[[dict[str, Any]], None], planned: Planned, before: int, done: int, total: int
) -> None:
    event = ProgressEvent(
        stage="setup",
        done=min(before + done, total),
        total=total,
        unit="byte",
        message=planned.need.source.name,
    )
    tell({"progress": event.model_dump(mode="json")})
