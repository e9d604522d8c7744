"""What recipes need on this machine, and fetching it: a child process of the server downloads, one recipe at a time, so that
a page may be closed meanwhile. A download that was broken off goes on when it is asked for again."""

from __future__ import annotations

import asyncio
from typing import Any, Literal

from pydantic import BaseModel

from lora_foundry.domain.recipe import Recipe
from lora_foundry.errors import FoundryError
from lora_foundry.families._shared.registry import family_of_recipe
from lora_foundry.files.download import extent_of
from lora_foundry.needs import Need, needs_of
from lora_foundry.settings import Settings
from lora_foundry.setup_job import ENTRY, SetupWork
from lora_foundry.tasks.children import Child, Job, run_alone
from lora_foundry.web.problems import ConflictError

TIMEOUT = 48 * 3600.0
HEARTBEAT, PATIENCE = (
    2.0,
    8.0,
)  # seconds between signs of life to the child, and without one until it ends itself


class NeedView(BaseModel):
    """One thing that a recipe needs. `found`: where it lies, None where it is not here; `bytes`: how much there is to
    fetch, None where nobody has said; `advice`: what to do where it cannot be fetched."""

    what: str
    name: str
    found: str | None
    fetchable: bool
    source: str
    licence: str
    bytes: int | None
    advice: str


class Readiness(BaseModel):
    """Whether this machine has all that a recipe needs. `family`: of its base, "" where that cannot be told."""

    recipe: str
    ready: bool
    fetchable: bool
    family: str
    needs: list[NeedView]


class SetupState(BaseModel):
    """A download. `done` of `total` bytes have come; `file` is what comes now; `error` says why it ended without all."""

    recipe: str
    state: Literal["none", "running", "completed", "failed", "cancelled"] = "none"
    file: str = ""
    done: int = 0
    total: int = 0
    error: str = ""


def readiness(name: str, recipe: Recipe, settings: Settings, sizes: bool = False) -> Readiness:
    """What a recipe needs and what of it is here. sizes: asks those who send it how large it is, which takes a moment."""
    needs = needs_of(recipe, settings)
    missing = [need for need in needs if need.found is None]
    return Readiness(
        recipe=name,
        ready=not missing,
        fetchable=all(need.fetchable for need in missing),
        family=family_of_recipe(recipe.model.base) or "",
        needs=[_view(need, sizes) for need in needs],
    )


def _view(need: Need, sizes: bool) -> NeedView:
    return NeedView(
        what=need.what,
        name=need.source.name,
        found=None if need.found is None else str(need.found),
        fetchable=need.fetchable,
        source=need.source.place,
        licence=need.source.licence,
        bytes=_size(need) if sizes and need.found is None and need.fetchable else None,
        advice="" if need.found is not None or need.fetchable else need.advice,
    )


def _size(need: Need) -> int | None:
    try:
        return extent_of(need.source).size
    except FoundryError:  # fetching it will say what is wrong
        return None


class Setups:
    """The downloads of this server; at most one is under way."""

    def __init__(self) -> None:
        self._states: dict[str, SetupState] = {}
        self._running: dict[str, asyncio.Task[None]] = {}

    def state(self, name: str) -> SetupState:
        """The newest download for a recipe."""
        return self._states.get(name, SetupState(recipe=name))

    def start(self, name: str, recipe: Recipe, settings: Settings) -> SetupState:
        """Begins, or goes on; returns at once. Raises ConflictError while another recipe's is under way."""
        if name in self._running:
            return self.state(name)
        if self._running:
            raise ConflictError(
                f"What {next(iter(self._running))} needs is being fetched; wait for its end, or stop it."
            )
        self._states[name] = SetupState(recipe=name, state="running")
        work = SetupWork(recipe=recipe, settings=settings).model_dump(mode="json")
        log = settings.home.expanduser().absolute() / "logs" / "setup" / f"{name}.log"

        def heard(event: dict[str, Any]) -> None:
            news = {"file": event["message"], "done": event["done"], "total": event["total"]}
            self._states[name] = self._states[name].model_copy(update=news)

        job = Job(ENTRY, work | {"settings": settings.for_child()}, PATIENCE, TIMEOUT)
        self._running[name] = asyncio.create_task(self._fetch(name, Child(log, heard), job))
        return self.state(name)

    async def _fetch(self, name: str, child: Child, job: Job) -> None:
        state, error = "cancelled", ""
        try:
            outcome = await run_alone(child, job, HEARTBEAT)
            state, error = ("failed", outcome.error) if outcome.error else ("completed", "")
        except FoundryError as problem:
            state, error = "failed", str(problem)
        finally:
            self._running.pop(name, None)
            last = self._states[name]
            done = last.total if state == "completed" else last.done
            self._states[name] = last.model_copy(update={"state": state, "error": error, "done": done})

    async def stop(self, name: str) -> SetupState:
        """Ends a download; what has come is kept, and the next one goes on there."""
        if task := self._running.get(name):
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        return self.state(name)

    async def finish(self) -> None:
        """Ends what is under way, child and all."""
        for name in list(self._running):
            await self.stop(name)
