"""Pipelines as the command line and the REST API speak of them: linked rows, one a stage, submitted, listed,
cancelled and done again as one thing. What must really be redone is decided by the stages themselves, which keep
whatever still fits; here it is only decided which rows run again, and with which settings."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import uuid4

import sqlalchemy as sa
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy.ext.asyncio import AsyncConnection

from lora_foundry.domain.cast import Member
from lora_foundry.domain.character import Character
from lora_foundry.domain.recipe import setting_values
from lora_foundry.domain.run import Again, Run
from lora_foundry.domain.task import WAITING, Task, TaskPriority, TaskStatus, TaskType
from lora_foundry.errors import FoundryError, InputError
from lora_foundry.files.bin import hidden_runs
from lora_foundry.files.paths import RunPaths
from lora_foundry.files.versions import continued, current_run, same_request
from lora_foundry.pipeline import PIPELINE, stages_of
from lora_foundry.remote.access import give, shared, store_changes
from lora_foundry.settings import Settings
from lora_foundry.tasks.admission import take_in
from lora_foundry.tasks.payloads import (
    flatten,
    held_run,
    place,
    plain_run,
    prepare,
    recognise,
    resolve,
    stage_name,
)
from lora_foundry.tasks.schema import ours, tasks
from lora_foundry.tasks.store import TaskStore

STAGES: tuple[str, ...] = tuple(stage.name for stage in PIPELINE)


class PipelineRequest(BaseModel):
    """What a pipeline is made from.

    again: what becomes of a character of that name that was asked for with other words or settings: it is kept as an
    earlier version, the run goes on in it, or it is replaced. The very same request always goes on.

    recipe: a recipe's name, or all its values; the settings' own if None. It is read once: the rows hold what it says.
    settings: recipe values over it, nested or dotted. reference_image: a file that the worker can read. members: of a
    cast, the characters that one LoRA is to draw; `character` is then the cast's own name.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    character: Character
    recipe: str | dict[str, Any] | None = None
    settings: dict[str, Any] = Field(default_factory=dict)
    output_name: str | None = None
    reference_image: str | None = None
    creator: str | None = None
    again: Again = "new"
    members: tuple[Member, ...] = ()


class StageState(BaseModel):
    """One row of a pipeline.

    progress: the newest ProgressEvent of its attempts, as JSON-like values. seconds: how long the completing attempt
    took. kind: the name of the error's class, where the stage failed with one. scheduled_for: when it may begin, where it
    waits for a time.
    """

    model_config = ConfigDict(frozen=True)

    stage: str
    task_id: int
    status: str
    progress: dict[str, Any] | None
    error: str | None
    kind: str | None
    retries: int
    resumes: int
    worker: str | None
    seconds: float | None
    started_at: datetime | None
    completed_at: datetime | None
    priority: int = TaskPriority.NORMAL
    scheduled_for: datetime | None = None


class Pipeline(BaseModel):
    """A pipeline as its rows have it; `status` sums the rows up. members: the names of a cast's characters."""

    model_config = ConfigDict(frozen=True)

    id: str
    status: TaskStatus
    character: str
    description: str
    recipe: str | None
    settings: dict[str, Any]
    output_name: str | None
    creator: str | None
    version: int | None
    created_at: datetime | None
    stages: tuple[StageState, ...]
    members: tuple[str, ...] = ()


async def submit(store: TaskStore, settings: Settings, request: PipelineRequest) -> Pipeline:
    """Checks the request as a worker would and puts its rows into the table.

    Raises PermanentError kinds, with nothing written, for what no worker could run.
    """
    pictures = await asyncio.to_thread(shared, settings, request.reference_image, request.members)
    rows = pipeline_tasks(request.model_copy(update=pictures))
    held = resolve("stage", rows[0].payload, settings)
    run = place("stage", rows[0].payload, held, settings).run
    folder = settings.datasets_dir / request.character.name
    await asyncio.to_thread(give, settings, RunPaths(folder, request.character.slug))
    now = await asyncio.to_thread(current_run, folder)
    version = continued(now, run, request.again)

    async def number(connection: AsyncConnection) -> None:
        free = await store.next_version(connection, request.character.name)
        chosen = max(free, now.version + 1 if now else 1) if version is None else version
        replaces = request.again == "replace" and version is None
        told = {"version": chosen, "replaces": replaces}
        for row in rows:
            row.payload = {**_dict(row.payload), **told}
            row.run = plain_run(held.model_copy(update=told))

    await store.add(*rows, first=number)
    return _summary(rows)


def another_run(settings: Settings, request: PipelineRequest) -> Run | None:
    """The run that stands in the folder of a request's character and was asked for with other words or settings."""
    now = current_run(settings.datasets_dir / request.character.name)
    run = prepare("stage", pipeline_tasks(request)[0].payload, settings).run
    return None if now is None or same_request(now, run) else now


def _dict(payload: object) -> dict[str, Any]:
    return payload if isinstance(payload, dict) else {}


async def unfinished(store: TaskStore, request: PipelineRequest) -> Pipeline | None:
    """A pipeline of the very same request that has not come to its end, as a killed command leaves one."""
    own = ("stage", "task_uuid", "pipeline", "version", "replaces")
    wanted = {key: value for key, value in _payload(request, "", "", "").items() if key not in own}
    open_rows = await store.where(
        ours.c.pipeline.is_not(None) & ours.c.status.in_([*WAITING, TaskStatus.RUNNING])
    )
    for row in open_rows:
        said = row.payload if isinstance(row.payload, dict) else {}
        if {key: value for key, value in said.items() if key not in own} == wanted:
            return await get_pipeline(store, row.pipeline or "")
    return None


def pipeline_tasks(request: PipelineRequest) -> list[Task]:
    """The rows of one pipeline, each depending on the one before."""
    pipeline, character = str(uuid4()), request.character
    made: list[Task] = []
    for stage in PIPELINE:
        task = Task(
            name=f"{stage.name} {character.name}",
            task_type=TaskType.USER_REQUEST,  # the one type that every host's enum has
            priority=TaskPriority.NORMAL,
            timeout=stage.timeout * max(1, len(request.members)),
            max_retries=stage.retries,
            dependencies=[made[-1].uuid] if made else [],
            creator=request.creator,
            pipeline=pipeline,
        )
        task.payload = _payload(request, stage.name, task.uuid, pipeline)
        made.append(task)
    return made


def _payload(request: PipelineRequest, stage: str, uuid: str, pipeline: str) -> dict[str, Any]:
    character = request.character
    reference = None if character.reference_image is None else str(character.reference_image)
    cast = {"members": [each.model_dump(mode="json") for each in request.members]} if request.members else {}
    return cast | {
        "task_type": TaskType.LORA_STAGE.lower(),
        "pipeline": pipeline,
        "stage": stage,
        "character_name": character.name,
        "description": character.description,
        "character_tags": list(character.tags),
        "trigger": character.trigger,
        "recipe": request.recipe,
        "settings": request.settings,
        "output_name": request.output_name,
        "reference_image": request.reference_image or reference,
        "task_uuid": uuid,
    }


async def recent_pipelines(store: TaskStore, *, limit: int = 50) -> list[Pipeline]:
    """The newest pipelines first."""
    return await pipelines_of(store, await recent_ids(store, limit=limit))


async def recent_ids(store: TaskStore, *, limit: int) -> list[str]:
    """The ids of the newest pipelines first, without what is in their rows."""
    newest = sa.select(ours.c.pipeline).where(ours.c.pipeline.is_not(None)).group_by(ours.c.pipeline)
    newest = newest.order_by(sa.func.max(ours.c.id).desc()).limit(limit)
    async with store.reading() as connection:
        return [str(each) for each in (await connection.execute(newest)).scalars()]


async def pipelines_of(store: TaskStore, names: Sequence[str]) -> list[Pipeline]:
    """The pipelines of these ids, in their order; one that is gone is left out."""
    rows: dict[str, list[Task]] = {}
    for row in await store.where(ours.c.pipeline.in_(names)):
        rows.setdefault(row.pipeline or "", []).append(row)
    return [_summary(rows[name]) for name in names if name in rows]


async def get_pipeline(store: TaskStore, reference: int | str) -> Pipeline:
    """The pipeline of that id, or the one that a task of that id or uuid belongs to. Raises InputError."""
    rows = await _rows_of(store, reference)
    if rows[0].pipeline is None:
        raise InputError(f"Task {rows[0].id} belongs to no pipeline.")
    return _summary(rows)


async def run_of(store: TaskStore, pipeline: str) -> Run | None:
    """The run that a pipeline's rows hold, in nobody's folders; None where none does."""
    query = sa.select(ours.c.run).where(ours.c.pipeline == pipeline).order_by(ours.c.id).limit(1)
    async with store.reading() as connection:
        return held_run((await connection.execute(query)).scalar())


async def cancel(store: TaskStore, reference: int | str) -> list[Task]:
    """Cancels a task, or every unfinished row of a pipeline, and returns what it asked to be cancelled.

    Waiting rows end at once; the child of a running one is killed by its worker. Raises InputError.
    """
    await take_in(store)
    rows = await _rows_of(store, reference)
    if not _is_pipeline(rows, reference):
        rows = [await store.get(reference)]
    _refuse_foreign(rows)
    unfinished = [row.id or 0 for row in rows if row.status in (*WAITING, TaskStatus.RUNNING)]
    await store.cancel(*unfinished)
    ids = [row.id for row in rows]
    return [row for row in await store.where(tasks.c.id.in_(ids)) if row.id in unfinished or len(ids) == 1]


async def retry(
    store: TaskStore,
    settings: Settings,
    reference: int | str,
    *,
    changes: Mapping[str, Any] | None = None,
    start: str | None = None,
) -> list[Task]:
    """Sets rows to pending again, and returns them: those from the first that must run, to the last below it.

    reference: a pipeline's id, or a task's id or uuid; in a pipeline the first to run is the earliest of the named
    task, `start`, the first stage that did not complete, and the first whose recipe section `changes` touches.
    changes: recipe values, nested or dotted, laid over the settings that the rows already carry.
    Raises InputError for a run in the bin, where nothing would run again, where a row is running, or for impossible changes.
    """
    await take_in(store)
    rows = await _rows_of(store, reference)
    _refuse_foreign(rows)
    if rows[0].pipeline in await asyncio.to_thread(hidden_runs, settings.home):
        raise InputError(f"{rows[0].name} is of a run that lies in the bin; restore it there first.")
    new = setting_values(flatten(changes or {}))
    in_pipeline = rows[0].pipeline is not None
    if in_pipeline:
        first = _first_again(rows, reference, new, start)
        again = rows[first:]
    elif start is not None:
        raise InputError(
            f"Task {rows[0].id} belongs to no pipeline, so it has no stage {start!r} to start at."
        )
    else:
        again = rows
    again = await store.with_descendants(again)
    again = [row for row in again if is_ours(row)]
    if in_pipeline:
        known = _summary(rows)
        await asyncio.to_thread(store_changes, settings, known.character, known.version)
    if all(row.status == TaskStatus.PENDING for row in again) and not new:
        raise InputError(f"Task {again[0].id} is pending already; it runs when a worker is free.")
    payloads = _changed([*rows, *again] if in_pipeline else again, new) if new else {}
    for row in again:
        kind = recognise(row.task_type, payload := payloads.get(row.id or 0, row.payload))
        try:
            if kind is not None:
                run = resolve(kind, payload, settings)
                place(kind, payload, run, settings)
                # An old producer's task works on what is there when it begins.
                row.run = plain_run(run) if kind == "stage" else None
        except FoundryError:
            if new:
                raise  # else the row's own error will say it
    await store.run_again(again, payloads)
    return await store.where(tasks.c.id.in_([row.id for row in again]))


def _first_again(
    rows: Sequence[Task], reference: int | str, new: Mapping[str, Any], start: str | None
) -> int:
    """The index of the first row of a pipeline that must run again."""
    names = [_stage_of(row) for row in rows]
    wanted = [index for index, row in enumerate(rows) if row.status != TaskStatus.COMPLETED][:1]
    wanted += [index for index, row in enumerate(rows) if str(reference) in (str(row.id), row.uuid)]
    wanted += [names.index(stage) for stage in names if start == stage]
    wanted += [index for index, row in enumerate(rows) if set(new) & _sections_of(row)]
    if start is not None and start not in names:
        raise InputError(f"The pipeline has no stage {start!r}; it has {', '.join(names)}.")
    if not wanted:
        raise InputError(
            f"Pipeline {rows[0].pipeline} is completed; say where to start with --from STAGE, or what to change with --set."
        )
    return min(wanted)


def _sections_of(row: Task) -> set[str]:
    """The recipe's sections that decide what a row's stages do; what belongs to none starts with the pictures."""
    names = set(stages_of(recognise(row.task_type, row.payload) or "") or (_stage_of(row),))
    return names | {"seed", "name", "description", "model", "shots"} if STAGES[0] in names else names


def _changed(rows: Sequence[Task], new: Mapping[str, Any]) -> dict[int, dict[str, Any]]:
    """The rows' payloads with the changes in them, by id."""
    changed = {}
    for row in rows:
        if isinstance(row.payload, dict):
            earlier = row.payload.get("settings")
            kept = flatten(earlier) if isinstance(earlier, dict) else ()
            changed[row.id or 0] = row.payload | {"settings": setting_values([*kept, *flatten(new)])}
    return changed


async def _rows_of(store: TaskStore, reference: int | str) -> list[Task]:
    """The rows of the pipeline that a reference means, in order; a task that belongs to none alone."""
    rows = await store.where(ours.c.pipeline == str(reference))
    if rows:
        return rows
    task = await store.get(reference)
    return [task] if task.pipeline is None else await store.where(ours.c.pipeline == task.pipeline)


def _is_pipeline(rows: Sequence[Task], reference: int | str) -> bool:
    return rows[0].pipeline is not None and rows[0].pipeline == str(reference)


def is_ours(row: Task) -> bool:
    """Whether a row is a task of this program; rows of others, and other user_requests, are never written to."""
    return recognise(row.task_type, row.payload) is not None


def _refuse_foreign(rows: Sequence[Task]) -> None:
    for row in rows:
        if not is_ours(row):
            raise InputError(f"Task {row.id} ({row.task_type}) is another program's; it is left alone.")


def _stage_of(row: Task) -> str:
    kind = recognise(row.task_type, row.payload)
    return stage_name(kind, row.payload) if kind else row.task_type


def _summary(rows: Sequence[Task]) -> Pipeline:
    payload = next((row.payload for row in rows if isinstance(row.payload, dict)), {})
    recipe, settings = payload.get("recipe"), payload.get("settings")
    return Pipeline(
        id=rows[0].pipeline or "",
        status=_status([row.status for row in rows]),
        character=str(payload.get("character_name", "")),
        description=str(payload.get("description", "")),
        recipe=_word(recipe.get("name") if isinstance(recipe, dict) else recipe),
        settings=settings if isinstance(settings, dict) else {},
        output_name=next((name for row in rows if (name := _output_name(row))), None),
        creator=rows[0].creator,
        version=version if isinstance(version := payload.get("version"), int) else None,
        created_at=rows[0].created_at,
        stages=tuple(_state(row) for row in rows),
        members=tuple(_names(payload.get("members"))),
    )


def _names(members: object) -> Iterator[str]:
    """The names of a cast's characters, as far as they can be read."""
    for each in members if isinstance(members, list) else ():
        character = each.get("character") if isinstance(each, dict) else None
        if isinstance(character, dict) and (name := _word(character.get("name"))):
            yield name


def _word(value: object) -> str | None:
    """A row by hand may hold anything; what is no text is not shown."""
    return value if isinstance(value, str) else None


def _output_name(row: Task) -> str | None:
    return _word(row.payload.get("output_name")) if isinstance(row.payload, dict) else None


def _seconds(stages: object) -> float | None:
    """What a row's result says of the time that its stages took, as far as it can be read."""
    parts = stages.values() if isinstance(stages, dict) else ()
    taken = [part.get("seconds") for part in parts if isinstance(part, dict)]
    known = [each for each in taken if isinstance(each, int | float)]
    return sum(known) if known else None


def _state(row: Task) -> StageState:
    result = row.result if isinstance(row.result, dict) else {}
    return StageState(
        stage=_stage_of(row),
        task_id=row.id or 0,
        status=row.status,
        progress=row.progress if isinstance(row.progress, dict) else None,
        error=row.error,
        kind=_word(result.get("kind")),
        retries=row.retries,
        resumes=row.resumes,
        worker=row.worker,
        seconds=_seconds(result.get("stages")),
        started_at=row.started_at,
        completed_at=row.completed_at,
        priority=row.priority,
        scheduled_for=row.scheduled_for,
    )


def _status(statuses: Sequence[str]) -> TaskStatus:
    """A pipeline is as bad as its worst row, runs while one runs, and waits where none has begun."""
    for decisive in (TaskStatus.FAILED, TaskStatus.RUNNING, TaskStatus.CANCELLED, TaskStatus.RETRYING):
        if decisive in statuses:
            return decisive
    if all(status == TaskStatus.COMPLETED for status in statuses):
        return TaskStatus.COMPLETED
    return TaskStatus.RUNNING if TaskStatus.COMPLETED in statuses else TaskStatus.PENDING
