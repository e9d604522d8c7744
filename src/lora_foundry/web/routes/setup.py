"""What a recipe needs on this machine, fetching it, the bases to choose from, and what runs of it have taken here."""

from __future__ import annotations

import asyncio
import json
from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field

from lora_foundry.domain.cast import MOST
from lora_foundry.domain.recipe import Recipe
from lora_foundry.errors import InputError
from lora_foundry.recipe_files import load_recipe, recipe_names
from lora_foundry.tasks.payloads import flatten
from lora_foundry.tasks.pipelines import Pipeline, recent_pipelines
from lora_foundry.web.bases import BaseView, listed_by_comfyui
from lora_foundry.web.disk_use import size_of
from lora_foundry.web.estimates import Past, Size, characters_of, expect, is_own
from lora_foundry.web.memory import MemoryEstimate
from lora_foundry.web.models import PlanRequest, RequestModel
from lora_foundry.web.problems import BUSY, NotFoundError
from lora_foundry.web.routes.recipes import known
from lora_foundry.web.setups import Readiness, SetupState, readiness
from lora_foundry.web.site import Here, Site
from lora_foundry.web.submission import checked_run
from lora_foundry.web.suggesting import Candidate, Suggestion, suggest

router = APIRouter(prefix="/api/v1", tags=["recipes"])
OtherBase = Annotated[str, Query(max_length=300, description="Another base of this machine.")]
MOST_RUNS = 200
_MOST_MEASURED = 3  # folders whose size is counted


class SizeIn(RequestModel):
    """How much work a run will be; 0: as the recipe says. Pictures and steps are meant a character."""

    characters: int = Field(default=1, ge=1, le=MOST)
    own: bool = Field(default=False, description="All pictures are a person's own.")
    images: int = Field(default=0, ge=0, le=10**6)
    steps: int = Field(default=0, ge=0, le=10**8)


class Earlier(BaseModel):
    """What a run of a recipe will take on this machine, by the median of the `runs` that are most like it, each of
    `characters` characters; measured: they are of just its size, else it is reckoned from them. None where there was none."""

    recipe: str
    runs: int
    measured: bool
    characters: int
    seconds: float | None
    bytes: int | None


@router.get("/readiness")
async def all_ready(here: Here) -> list[Readiness]:
    """For every recipe, what it needs and what of it is on this machine."""

    def look() -> list[Readiness]:
        names = recipe_names(here.settings.recipe_folders)
        return [readiness(name, known(here, name), here.settings) for name in names]

    return await asyncio.to_thread(look)


@router.get("/recipes/{name}/needs")
async def needs(here: Here, name: str, base: OtherBase = "", sizes: bool = False) -> Readiness:
    """What one recipe needs. With `sizes`, those who send it are asked how large it is."""
    recipe = await asyncio.to_thread(_with_base, here, name, base)
    return await asyncio.to_thread(readiness, name, recipe, here.settings, sizes)


@router.get("/recipes/{name}/setup")
async def setup_state(here: Here, name: str) -> SetupState:
    """How far the download of what a recipe needs has come."""
    await asyncio.to_thread(known, here, name)
    return here.setups.state(name)


@router.post("/recipes/{name}/setup", status_code=202)
async def set_up(here: Here, name: str, base: OtherBase = "") -> SetupState:
    """Begins to fetch what is missing, which agrees to the licences that `needs` shows; one that was broken off goes on.
    Returns at once."""
    recipe = await asyncio.to_thread(_with_base, here, name, base)
    return here.setups.start(name, recipe, here.settings)


@router.delete("/recipes/{name}/setup")
async def stop_setup(here: Here, name: str) -> SetupState:
    """Stops fetching; what has come is kept for the next time."""
    await asyncio.to_thread(known, here, name)
    return await here.setups.stop(name)


def _with_base(here: Site, name: str, base: str) -> Recipe:
    """The recipe of that name, with another base of this machine. Raises NotFoundError for one that is not here."""
    recipe = known(here, name)
    if not base or base == recipe.model.base:
        return recipe
    if base not in {each.name for each in here.bases.found(here.settings)}:
        raise NotFoundError(f"There is no base model {base[:80]!r} on this machine.")
    return load_recipe(name, [f"model.base={json.dumps(base)}"], here.settings.recipe_folders)


@router.get("/suggestion")
async def suggestion(here: Here) -> Suggestion:
    """The recipe that fits this machine best, for somebody who has not chosen one."""

    def look() -> tuple[list[Candidate], list[BaseView]]:
        names = recipe_names(here.settings.recipe_folders)
        recipes = [(name, known(here, name)) for name in names]
        found = [Candidate(each, readiness(name, each, here.settings)) for name, each in recipes]
        return found, here.bases.found(here.settings)

    candidates, found = await asyncio.to_thread(look)
    return suggest(here.settings, candidates, found, bool(await here.machine.gpus()))


@router.post("/memory", responses=BUSY)
async def memory(here: Here, asked: PlanRequest) -> MemoryEstimate:
    """How much GPU memory the training of a request would take. 503 where its base is not on this machine."""
    run = await asyncio.to_thread(checked_run, here.settings, asked)
    return await here.memory.of(run.recipe, here.settings)


@router.get("/bases")
async def bases(here: Here) -> list[BaseView]:
    """The base models of this machine with their families, then those that only ComfyUI lists."""
    found = await asyncio.to_thread(here.bases.found, here.settings)
    return [*found, *await listed_by_comfyui(here.settings, {each.name for each in found})]


@router.get("/recipes/{name}/earlier")
async def earlier(here: Here, name: str, asked: Annotated[SizeIn, Query()]) -> Earlier:
    """What a run of a recipe will take on this machine, from the completed runs that are most like it."""
    recipe = await asyncio.to_thread(known, here, name)
    listed = await recent_pipelines(here.store, limit=MOST_RUNS)
    completed = [each for each in listed if each.recipe == name and each.status == "completed"]
    past = await asyncio.to_thread(lambda: [Past(each, _size(here, each)) for each in completed])
    images = asked.images or recipe.generate.images
    wanted = Size(asked.characters, asked.own, images, asked.steps or recipe.total_steps)
    found = expect(past, wanted)
    if found is None:
        return Earlier(recipe=name, runs=0, measured=False, characters=0, seconds=None, bytes=None)
    sizes: list[int] = []
    for each in found.runs[:_MOST_MEASURED]:
        try:
            sizes.append(await asyncio.to_thread(size_of, here.folder(each.pipeline).root))
        except NotFoundError:
            continue
    sizes = sorted(size for size in sizes if size)
    return Earlier(
        recipe=name,
        runs=len(found.runs),
        measured=found.measured(wanted),
        characters=found.runs[0].size.characters,
        seconds=found.seconds or None,
        bytes=round(sizes[len(sizes) // 2] * found.share) if sizes else None,
    )


def _size(here: Site, pipeline: Pipeline) -> Size:
    """How much work a run was; of a recipe that was changed since then, as it now says."""
    images, steps, own = 1, 1, is_own(pipeline)
    try:
        folders = here.settings.recipe_folders
        recipe = load_recipe(pipeline.recipe or "", flatten(pipeline.settings), folders)
        images, steps = recipe.generate.images, recipe.total_steps
        own = own or recipe.dataset.source == "own"
    except InputError:
        pass  # its settings fit the recipe no longer
    return Size(characters_of(pipeline), own, images, steps)
