"""What a client asks for, checked before it becomes rows. The worker's checks come first; a request from another
machine may besides name no file of this one outside the folders that the settings name."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from lora_foundry.domain.cast import Member
from lora_foundry.domain.character import Character
from lora_foundry.domain.recipe import setting_values
from lora_foundry.domain.run import Run
from lora_foundry.domain.task import WAITING, TaskStatus
from lora_foundry.errors import InputError
from lora_foundry.files.paths import RunPaths
from lora_foundry.files.versions import current_run
from lora_foundry.settings import Settings
from lora_foundry.tasks.payloads import prepare
from lora_foundry.tasks.pipelines import Pipeline, PipelineRequest, pipeline_tasks, recent_pipelines
from lora_foundry.tasks.store import TaskStore
from lora_foundry.web import uploads
from lora_foundry.web.models import MemberIn, PipelineIn, PlanRequest
from lora_foundry.web.safe_files import is_plain_name, safe_file

REFERENCES = "references"
_MOST_LOOKED_AT = 1000  # runs


def pipeline_request(settings: Settings, asked: PlanRequest) -> PipelineRequest:
    """The engine's request for what a client asked. Raises InputError."""
    if isinstance(asked, PipelineIn) and asked.members:
        _refuse_beside_members(asked)
    values = setting_values(asked.settings)
    if asked.seed is not None:
        values["seed"] = asked.seed
    if asked.recipe is not None and not is_plain_name(asked.recipe):
        raise InputError(f"{asked.recipe[:80]!r} is no recipe's name.")
    more: dict[str, Any] = {}
    trigger = ""
    if isinstance(asked, PipelineIn):
        trigger = asked.trigger
        more["output_name"] = asked.output_name or None
        more["members"] = tuple(_member(settings, each) for each in asked.members)
        if asked.reference is not None:
            more["reference_image"] = str(safe_file(settings.home / REFERENCES, asked.reference))
        if asked.more_references:
            paths = [str(safe_file(settings.home / REFERENCES, name)) for name in asked.more_references]
            _section(values, "generate")["references"] = paths
        if asked.pictures or asked.upload is not None:
            _section(values, "dataset").setdefault("source", "own")
    character = _character(asked, trigger)
    recipe = asked.recipe or settings.recipe  # a worker elsewhere may have another default
    return PipelineRequest(character=character, recipe=recipe, settings=values, creator="web", **more)


def _character(asked: PlanRequest | MemberIn, trigger: str, reference: Path | None = None) -> Character:
    try:
        return Character(
            name=asked.name,
            description=asked.description,
            trigger=trigger,
            tags=tuple(asked.tags),
            reference_image=reference,
        )
    except ValidationError as error:
        raise InputError(str(error.errors()[0]["msg"])) from error


def _member(settings: Settings, asked: MemberIn) -> Member:
    """A character of a cast. Raises InputError, NotFoundError."""
    reference = None
    if asked.reference is not None:
        reference = safe_file(settings.home / REFERENCES, asked.reference)
    own = asked.upload is not None or asked.pictures
    return Member(character=_character(asked, asked.trigger, reference), source="own" if own else "auto")


def _refuse_beside_members(asked: PipelineIn) -> None:
    """Raises InputError for what would be said of a cast and of its characters."""
    beside = ("description", "tags", "trigger", "upload", "reference", "more_references", "pictures")
    if told := [name for name in beside if getattr(asked, name)]:
        raise InputError(f"A cast's characters are told one by one; say {', '.join(told)} of a member.")


def checked_run(settings: Settings, asked: PlanRequest) -> Run:
    """The run that a request would become. Raises PermanentError kinds; writes nothing."""
    return prepare("stage", pipeline_tasks(pipeline_request(settings, asked))[0].payload, settings).run


def _section(values: dict[str, Any], name: str) -> dict[str, Any]:
    """The part of nested settings that belongs to a recipe's section. Raises InputError for what is none."""
    part = values.setdefault(name, {})
    if not isinstance(part, dict):
        raise InputError(f"{name} is a section of the recipe; set a value of it, such as {name}.key=value.")
    return part


def own_pictures(settings: Settings, asked: PipelineIn, run: Run) -> list[tuple[list[Path], RunPaths]]:
    """Where the own pictures lie that a client has sent and now names, and the set that each goes into. Raises NotFoundError,
    InputError."""
    told: Sequence[PipelineIn | MemberIn] = asked.members or [asked]
    found = [
        (_sent(settings, each), RunPaths(member.dataset_dir, member.character.slug))
        for each, member in zip(told, run.member_runs, strict=True)
    ]
    return [(sources, paths) for sources, paths in found if sources]


def uploads_of(asked: PipelineIn) -> list[str]:
    """The ids of everything that was sent for a request."""
    named = [asked.upload, *(each.upload for each in asked.members)]
    return list(dict.fromkeys(each for each in named if each is not None))


def _sent(settings: Settings, asked: PipelineIn | MemberIn) -> list[Path]:
    names = dict.fromkeys(asked.pictures)
    sent = [] if asked.upload is None else uploads.sources(settings, asked.upload)
    return [*sent, *(safe_file(settings.home / REFERENCES, name) for name in names)]


async def waits_to_begin(store: TaskStore, settings: Settings, character: str) -> Pipeline | None:
    """The newest run of a character that has not begun in its folder and may yet."""
    now = await asyncio.to_thread(current_run, settings.datasets_dir / character)
    newest = 0 if now is None else now.version
    for found in await recent_pipelines(store, limit=_MOST_LOOKED_AT):
        open_ = found.status in (*WAITING, TaskStatus.RUNNING)
        if open_ and found.character.lower() == character.lower() and (found.version or 0) > newest:
            return found
    return None
