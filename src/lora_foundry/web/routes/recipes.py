"""Recipes with every field and its help text, and the plan of a set before anything is made."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, Field

from lora_foundry.domain.picture_plan import plan_pictures
from lora_foundry.domain.recipe import Recipe
from lora_foundry.domain.shots import AXES
from lora_foundry.errors import InputError
from lora_foundry.recipe_files import load_recipe, own_recipe, recipe_names, write_own_recipe
from lora_foundry.web.models import PlanRequest, RequestModel, SettingText
from lora_foundry.web.problems import NotFoundError
from lora_foundry.web.recipe_fields import RecipeField, fields_of
from lora_foundry.web.site import Here, Site
from lora_foundry.web.submission import checked_run

logger = logging.getLogger(__name__)
router = APIRouter(prefix="/api/v1", tags=["recipes"])


class RecipeSummary(BaseModel):
    """own: it lies in this person's `<home>/recipes`; usual: what a run has where none is named."""

    name: str
    own: bool = False
    usual: bool = False
    description: str
    images: int
    width: int
    height: int
    steps: int


class RecipeSection(BaseModel):
    """One part of a recipe; the first, without a name, holds the seed."""

    name: str
    description: str
    fields: list[RecipeField]


class RecipeIn(RequestModel):
    """A person's own recipe: `extends` with these settings changed."""

    name: str = Field(min_length=1, max_length=64, examples=["mine"])
    extends: str = Field(max_length=200, examples=["mini"])
    description: str = Field(default="", max_length=300)
    settings: list[SettingText] = Field(default=[], max_length=300)


class RecipeDetail(RecipeSummary):
    sections: list[RecipeSection]


class PlannedShot(BaseModel):
    """A picture that will be made: `shot` by axis, `prompt` and `seed` as the generator gets them."""

    index: int
    file: str
    prompt: str
    negative: str
    seed: int
    width: int
    height: int
    shot: dict[str, str]


class Plan(BaseModel):
    character: str
    trigger: str
    recipe: str
    dataset_dir: str
    output_name: str
    training_steps: int
    shots: list[PlannedShot]


@router.get("/recipes")
def list_recipes(here: Here) -> list[RecipeSummary]:
    """The recipes that ship, and this person's own in `<home>/recipes`; one that cannot be read is left out."""
    folders, found = here.settings.recipe_folders, list[RecipeSummary]()
    for name in recipe_names(folders):
        try:
            recipe = load_recipe(name, folders=folders)
        except InputError as error:
            logger.warning("%s", error)
            continue
        own = own_recipe(name, folders) is not None
        found.append(RecipeSummary(**_summary(here, recipe, name, own)))
    return found


@router.post("/recipes", status_code=201)
def save_recipe(here: Here, asked: RecipeIn) -> RecipeSummary:
    """Saves changes as a person's own recipe in `<home>/recipes`; one of that name is replaced."""
    known(here, asked.extends)
    (folder,) = here.settings.recipe_folders
    write_own_recipe(folder, asked.name, asked.extends, asked.description, asked.settings)
    recipe = load_recipe(asked.name, folders=(folder,))
    return RecipeSummary(**_summary(here, recipe, asked.name, own=True))


@router.get("/recipes/{name}")
def read_recipe(here: Here, name: str) -> RecipeDetail:
    """One recipe: every field with its type, value, default, limits and help text."""
    recipe = known(here, name)
    sections = [
        RecipeSection(name=each.name, description=each.description, fields=each.fields)
        for each in fields_of(recipe)
    ]
    own = own_recipe(name, here.settings.recipe_folders) is not None
    return RecipeDetail(**_summary(here, recipe, name, own), sections=sections)


def known(here: Site, name: str) -> Recipe:
    """The recipe of that name. Raises NotFoundError; paths are no names."""
    names = recipe_names(here.settings.recipe_folders)
    if name not in names:
        raise NotFoundError(f"There is no recipe {name[:80]!r}; the recipes are {', '.join(names)}.")
    return load_recipe(name, folders=here.settings.recipe_folders)


@router.post("/plan")
async def plan(here: Here, request: PlanRequest) -> Plan:
    """The shots, prompts and seeds of a set. Writes nothing."""
    return await asyncio.to_thread(_plan, here, request)


def _plan(here: Site, request: PlanRequest) -> Plan:
    run = checked_run(here.settings, request)
    pictures = plan_pictures(run.character, run.recipe, "")
    records = [pictures.record(index) for index in range(len(pictures.shots))]
    return Plan(
        character=run.character.name,
        trigger=run.character.trigger,
        recipe=run.recipe.name,
        dataset_dir=str(run.dataset_dir),
        output_name=run.output_name,
        training_steps=run.recipe.total_steps,
        shots=[
            PlannedShot(
                index=index,
                file=record.file,
                prompt=record.request.prompt,
                negative=record.request.negative,
                seed=record.request.seed,
                width=record.request.width,
                height=record.request.height,
                shot=dict(zip(AXES, record.shot, strict=True)),
            )
            for index, record in enumerate(records)
        ],
    )


def _summary(here: Site, recipe: Recipe, name: str, own: bool) -> dict[str, Any]:
    made = recipe.generate
    sizes = {"images": made.images, "width": made.width, "height": made.height}
    said = {"name": name, "own": own, "usual": name == here.settings.recipe}
    return {"description": recipe.description, "steps": recipe.total_steps, **said, **sizes}
