"""Pipelines: start, list, read, cancel, do again."""

from __future__ import annotations

import asyncio
import os
import shlex
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Query, Response

from lora_foundry.composition import check_ahead
from lora_foundry.domain.publication import Publication
from lora_foundry.domain.recipe import setting_values
from lora_foundry.domain.run import Run
from lora_foundry.domain.task import TaskPriority, TaskStatus
from lora_foundry.errors import InputError
from lora_foundry.files.images import is_readable
from lora_foundry.files.importing import take_all_pictures
from lora_foundry.files.paths import RunPaths
from lora_foundry.files.storage import read_model
from lora_foundry.files.training_set import list_set
from lora_foundry.recipe_files import load_recipe, recipe_names
from lora_foundry.settings import Settings
from lora_foundry.tasks import arranging
from lora_foundry.tasks import pipelines as engine
from lora_foundry.tasks.pipelines import Pipeline
from lora_foundry.tasks.recovery import workers
from lora_foundry.tasks.waiting import waits_until
from lora_foundry.web import uploads
from lora_foundry.web.models import (
    ArrangeIn,
    PipelineDetail,
    PipelineIn,
    PipelinePage,
    PipelineView,
    PublishIn,
    RetryIn,
)
from lora_foundry.web.problems import ConflictError, NotFoundError
from lora_foundry.web.routes import Page
from lora_foundry.web.site import Here, Site
from lora_foundry.web.submission import (
    checked_run,
    own_pictures,
    pipeline_request,
    uploads_of,
    waits_to_begin,
)
from lora_foundry.web.views import address, pipeline_view

router = APIRouter(prefix="/api/v1/pipelines", tags=["pipelines"])
MOST_LISTED = 1000
PAGES = (
    Page("/", "pipelines", "Runs", "M4 6h16M4 12h16M4 18h10", place=1),
    Page("/new", "new", "New character", "M12 5v14M5 12h14", place=2),
    Page("/pipelines/{pipeline}", "run", below="pipelines"),
)


@router.post("", status_code=201)
async def create(here: Here, asked: PipelineIn, response: Response) -> PipelineView:
    """Checks everything as a worker would, then puts a task for each stage into the table."""
    made = await start(here, asked)
    response.headers["location"] = here.root + address(made.id)
    return await show(here, made)


async def start(here: Site, asked: PipelineIn, creator: str = "web") -> Pipeline:
    """The pipeline that a client asked for, in the table. creator: the door that it came by."""
    request = await asyncio.to_thread(pipeline_request, here.settings, asked)
    run = await asyncio.to_thread(checked_run, here.settings, asked)
    for member in run.member_runs:
        await asyncio.to_thread(check_ahead, member, here.settings)
    paths = RunPaths(run.dataset_dir, run.character.slug)
    wanted = await asyncio.to_thread(own_pictures, here.settings, asked, run)
    sent = {paths.root for _, paths in wanted}
    for member in run.member_runs:
        await asyncio.to_thread(_refuse_no_pictures, here.settings, member, member.dataset_dir in sent)
    if wanted:
        if waiting := await waits_to_begin(here.store, here.settings, run.character.name):
            raise ConflictError(
                f"Another run of {waiting.character} waits to begin, and would get these pictures, too; wait until it has "
                "begun, cancel it, or choose another name."
            )
        await asyncio.to_thread(take_all_pictures, wanted, paths, run, request.again)
    request = request.model_copy(update={"creator": creator})
    made = await engine.submit(here.store, here.settings, request)
    for upload in uploads_of(asked):
        await asyncio.to_thread(uploads.forget, here.settings, upload)
    return made


def _refuse_no_pictures(settings: Settings, run: Run, sent: bool) -> None:
    """Raises InputError for a run on own pictures for which none came and none lies here. With a storage they may have come
    to another host, where the worker finds them."""
    if run.draws or sent or settings.storage:
        return
    try:
        found = list_set(RunPaths(run.dataset_dir, run.character.slug)).pictures
    except InputError:
        found = ()
    if all(each.generated for each in found):
        raise InputError(
            f"The recipe {run.recipe.name} draws nothing for {run.character.name}: give your own pictures with it (`upload` or "
            "`pictures`; on the page, the door My pictures)."
        )


@router.get("")
async def list_pipelines(
    here: Here,
    status: TaskStatus | None = None,
    q: Annotated[str, Query(max_length=200, description="Part of the name or the description.")] = "",
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    cursor: Annotated[
        str | None, Query(max_length=80, description="`next_cursor` of the page before.")
    ] = None,
) -> PipelinePage:
    """The newest first, MOST_LISTED at most."""
    hidden = await asyncio.to_thread(here.hidden)
    ids = [each for each in await engine.recent_ids(here.store, limit=MOST_LISTED) if each not in hidden]
    words = q.strip().lower()
    if status is not None or words:  # only these need what stands in all rows
        listed = await engine.pipelines_of(here.store, ids)
        ids = [each.id for each in listed if _fits(each, status, words)]
    start = ids.index(cursor) + 1 if cursor in ids else 0
    page = await engine.pipelines_of(here.store, ids[start : start + limit])
    if start == 0:
        here.estimates.learn(page)
    return PipelinePage(
        pipelines=[await show(here, each) for each in page],
        total=len(ids),
        next_cursor=page[-1].id if page and start + limit < len(ids) else None,
    )


@router.get("/{pipeline}")
async def read(here: Here, pipeline: str) -> PipelineDetail:
    """One pipeline with its stages."""
    found = await here.pipeline(pipeline)
    return await _detail(here, found)


@router.patch("/{pipeline}")
async def arrange(here: Here, pipeline: str, asked: ArrangeIn) -> PipelineView:
    """Puts what waits of a run before others or after them, pauses or resumes it. A stage that runs goes on to its end."""
    found = await here.pipeline(pipeline)
    priority = None if asked.priority is None else TaskPriority(asked.priority)
    await arranging.arrange(here.store, found.id, priority=priority, paused=asked.paused)
    return await show(here, await here.pipeline(found.id))


@router.post("/{pipeline}/cancel")
async def cancel(here: Here, pipeline: str) -> PipelineView:
    """Cancels what waits at once; what runs is killed by its worker within a second."""
    found = await here.pipeline(pipeline)
    await engine.cancel(here.store, found.id)
    return await show(here, await here.pipeline(found.id))


@router.post("/{pipeline}/retry")
async def retry(here: Here, pipeline: str, asked: RetryIn | None = None) -> PipelineView:
    """Runs a pipeline again, with changed settings if given, from the first stage that has to."""
    found, asked = await here.pipeline(pipeline), asked or RetryIn()
    new = setting_values(asked.settings)
    await engine.retry(here.store, here.settings, found.id, changes=new, start=asked.from_stage)
    return await show(here, await here.pipeline(found.id))


@router.post("/{pipeline}/publish")
async def publish(here: Here, pipeline: str, asked: PublishIn | None = None) -> PipelineView:
    """Installs the LoRA again, or another checkpoint of it, which is measured first."""
    found, asked = await here.pipeline(pipeline), asked or PublishIn()
    folders = here.settings.recipe_folders
    new: dict[str, float] = {"step": asked.step or 0}
    if asked.step and asked.strength:
        new["strength"] = asked.strength
    earlier = found.settings.get("evaluate")
    known = {"step": 0} | (earlier if isinstance(earlier, dict) else {})
    if not asked.step and known["step"] and found.recipe in recipe_names(folders):
        new["strength"] = load_recipe(
            found.recipe, folders=folders
        ).evaluate.strength  # the strength came with the step
    if new.items() <= known.items():
        await engine.retry(here.store, here.settings, found.id, start="publish")
    else:
        await engine.retry(here.store, here.settings, found.id, changes={"evaluate": new}, start="evaluate")
    return await show(here, await here.pipeline(found.id))


async def show(here: Site, pipeline: Pipeline) -> PipelineView:
    """A pipeline with the address of its newest picture, which changes when there is a newer one."""
    return pipeline_view(pipeline, here.estimates, thumbnail_address(here, pipeline))


def thumbnail_address(here: Site, pipeline: Pipeline) -> str | None:
    """None where no picture was made yet."""
    try:
        changed = max(_newest(paths.images) for paths in here.sets(pipeline).values())
    except NotFoundError:
        return None
    return f"{address(pipeline.id, 'thumbnail')}?v={changed:x}" if changed else None


def _newest(images: Path) -> int:
    """When a folder of pictures was last changed; 0 for one without any."""
    try:
        with os.scandir(images) as entries:
            if any(is_readable(Path(each.name)) or each.is_dir() for each in entries):
                return images.stat().st_mtime_ns
    except OSError:
        pass
    return 0


async def _detail(here: Site, pipeline: Pipeline) -> PipelineDetail:
    view = await show(here, pipeline)
    try:
        paths = here.folder(pipeline)
    except NotFoundError:  # a row by hand names no folder that could be ours
        return PipelineDetail(
            **view.model_dump(), trigger="", tags=[], dataset_dir="", has_results=False, published=False
        )
    run = await asyncio.to_thread(read_model, paths.run_file, Run)
    run = run or await engine.run_of(here.store, pipeline.id)  # before it begins
    published = await asyncio.to_thread(read_model, paths.publication, Publication)
    return PipelineDetail(
        **view.model_dump(),
        trigger=run.trigger if run else "",
        tags=list(run.character.tags) if run else [],
        dataset_dir=str(paths.root),
        has_results=paths.evaluation_result.is_file(),
        published=published is not None and published.published,
        waits_for=await _waits_for(here, view),
        cautions=list(run.cautions) if run else [],
    )


async def _waits_for(here: Site, view: PipelineView) -> str | None:
    """What a stage that could run waits for: a worker that is not there, or one that does something else."""
    now = next((stage for stage in view.stages if stage.stage == view.stage), None)
    if now is None or now.status not in (TaskStatus.PENDING, TaskStatus.RETRYING):
        return None
    if view.status == TaskStatus.FAILED:
        return None
    if view.paused:
        return "This run is paused; press Resume to let it go on."
    fitting = [each.name for each in await workers(here.store) if now.lane in each.lanes.split(",")]
    if not fitting:
        return (
            f"No worker is running for {now.label}. Start one in a terminal with `lora-foundry worker{_home(here)}`, or "
            "start this server with `--with-worker`; the run goes on by itself then."
        )
    if now.status == TaskStatus.RETRYING and now.error:
        return f"The last attempt failed and is made again soon: {now.error}"
    before = await waits_until(here.store, now.task_id)
    return f"Waits {before}" if before else "A worker takes it in a moment."


def _home(here: Site) -> str:
    """What a command needs to find this server's home: nothing for the usual one."""
    home = here.settings.home.expanduser().absolute()
    usual = Settings.model_fields["home"].get_default(call_default_factory=True)
    return "" if home == Path(usual).expanduser().absolute() else f" --home {shlex.quote(str(home))}"


def _fits(pipeline: Pipeline, status: TaskStatus | None, words: str) -> bool:
    text = f"{pipeline.character} {pipeline.description} {pipeline.recipe}".lower()
    return (status is None or pipeline.status == status) and words in text
