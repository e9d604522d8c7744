"""The versions of a character side by side, and any other LoRA beside them: settings, scores, and what each drew for the same
prompts and seeds."""

from __future__ import annotations

import asyncio
from datetime import datetime
from itertools import islice
from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import BaseModel

from lora_foundry.domain.evaluation import Evaluation, Scores
from lora_foundry.domain.task import TaskStatus
from lora_foundry.files.storage import read_model
from lora_foundry.tasks.pipelines import Pipeline, recent_pipelines
from lora_foundry.web.problems import NotFoundError
from lora_foundry.web.routes import Page
from lora_foundry.web.routes.results import picture_address
from lora_foundry.web.site import Here, Site
from lora_foundry.web.trials import lora_file
from lora_foundry.web.views import aware

router = APIRouter(prefix="/api/v1/pipelines/{pipeline}", tags=["results"])
PAGES = (Page("/pipelines/{pipeline}/versions", "versions", below="pipelines"),)
_MOST_RUNS = 1000
_MOST_SHOWN = 8
_MOST_OTHERS = 100


class VersionView(BaseModel):
    """A run as one version. `changes`: its settings that differ from its recipe, as "section.key = value"; `level`: how good
    its LoRA is, "" where nothing was measured; `has_lora`: there is one to be used, which was perhaps not measured."""

    id: str
    character: str
    version: int | None
    recipe: str | None
    status: str
    description: str
    created_at: datetime | None
    changes: list[str]
    strength: float | None
    scores: Scores | None
    level: str
    has_lora: bool


class SamePrompt(BaseModel):
    """What the versions drew for one shot and seed; None where one did not draw it. `without`: without any LoRA."""

    words: str
    seed: int
    without: str
    pictures: list[str | None]


class Versions(BaseModel):
    """`versions` of the character, the newest first, then those that were asked for besides; `others`: further runs with a
    LoRA that could be."""

    versions: list[VersionView]
    same: list[SamePrompt]
    others: list[VersionView]


@router.get("/versions")
async def versions(
    here: Here,
    pipeline: str,
    also: Annotated[
        list[str], Query(default_factory=list, max_length=_MOST_SHOWN, description="Further runs, by id.")
    ],
) -> Versions:
    """The runs of the same character, and others besides, to be compared."""
    found = await here.pipeline(pipeline)
    hidden = await asyncio.to_thread(here.hidden)
    listed = [each for each in await recent_pipelines(here.store, limit=_MOST_RUNS) if each.id not in hidden]
    name = found.character.lower()
    chosen = [each for each in listed if each.character.lower() == name][:_MOST_SHOWN]
    if found.id not in [each.id for each in chosen]:
        chosen = [found, *chosen[:-1]]
    chosen += [each for each in listed if each.id in also and each.id not in [one.id for one in chosen]]
    return await asyncio.to_thread(_compared, here, chosen, listed)


def _compared(here: Site, chosen: list[Pipeline], listed: list[Pipeline]) -> Versions:
    measured = {each.id: _evaluation(here, each) for each in chosen}
    ids = set(measured)
    completed = (each for each in listed if each.id not in ids and each.status == TaskStatus.COMPLETED)
    others = islice((each for each in completed if _has_lora(here, each)), _MOST_OTHERS)
    return Versions(
        versions=[_view(each, measured[each.id], _has_lora(here, each)) for each in chosen],
        same=_same(chosen, measured),
        others=[_view(each, None, has_lora=True) for each in others],
    )


def _has_lora(here: Site, pipeline: Pipeline) -> bool:
    """A retried training leaves the LoRA of the last time until it has made another."""
    try:
        lora_file(here.settings, here.folder(pipeline))
    except NotFoundError:
        return False
    return True


def _evaluation(here: Site, pipeline: Pipeline) -> Evaluation | None:
    try:
        return read_model(here.folder(pipeline).evaluation_result, Evaluation)
    except NotFoundError:
        return None


def _view(pipeline: Pipeline, evaluation: Evaluation | None, has_lora: bool) -> VersionView:
    return VersionView(
        id=pipeline.id,
        character=pipeline.character,
        version=pipeline.version,
        recipe=pipeline.recipe,
        status=pipeline.status,
        description=pipeline.description,
        created_at=aware(pipeline.created_at),
        changes=_changes(pipeline.settings),
        strength=None if evaluation is None else evaluation.strength,
        scores=None if evaluation is None else evaluation.scores,
        level="" if evaluation is None else evaluation.assessment.level,
        has_lora=has_lora,
    )


def _changes(settings: dict[str, Any], path: str = "") -> list[str]:
    found: list[str] = []
    for key, value in settings.items():
        found += (
            _changes(value, f"{path}{key}.") if isinstance(value, dict) else [f"{path}{key} = {value}"[:200]]
        )
    return found


def _same(chosen: list[Pipeline], measured: dict[str, Evaluation | None]) -> list[SamePrompt]:
    """One row a shot and seed that any of them drew; a character's trigger is in no shot's words."""
    rows: dict[tuple[str, int], SamePrompt] = {}
    for place, pipeline in enumerate(chosen):
        evaluation = measured[pipeline.id]
        if evaluation is None:
            continue
        mark = f"?v={evaluation.fingerprint}"
        for before, after in zip(evaluation.before.pictures, evaluation.after.pictures, strict=False):
            words = ", ".join(after.shot.words())
            row = rows.setdefault(
                (words, after.seed),
                SamePrompt(
                    words=words,
                    seed=after.seed,
                    without=picture_address(pipeline.id, before.file) + mark,
                    pictures=[None] * len(chosen),
                ),
            )
            row.pictures[place] = picture_address(pipeline.id, after.file) + mark
    return sorted(rows.values(), key=lambda row: -sum(each is not None for each in row.pictures))
