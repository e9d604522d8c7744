"""The task table's rows, for those who look below the pipelines, and their logs."""

from __future__ import annotations

import asyncio
from codecs import getincrementaldecoder
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Query

from lora_foundry.domain.task import Task, TaskStatus
from lora_foundry.tasks import pipelines as engine
from lora_foundry.web.models import LogPart, TaskDetail, TaskPage, TaskView
from lora_foundry.web.problems import NotFoundError
from lora_foundry.web.site import Here, Site
from lora_foundry.web.views import task_detail, task_view

router = APIRouter(prefix="/api/v1/tasks", tags=["tasks"])
MOST_LOG = 64 * 1024


@router.get("")
async def list_tasks(
    here: Here,
    status: TaskStatus | None = None,
    pipeline: Annotated[str | None, Query(max_length=80)] = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 100,
) -> TaskPage:
    """The newest first, with the number of rows of each status."""
    pipeline = pipeline.replace("\0", "") if pipeline else None
    found = await here.store.recent(status=status, pipeline=pipeline, limit=limit)
    return TaskPage(tasks=[task_view(each) for each in found], counts=await here.store.counts())


@router.get("/{task}")
async def read(here: Here, task: str) -> TaskDetail:
    """One row with its payload and result; by id or uuid."""
    return task_detail(await _task(here, task))


@router.get("/{task}/log")
async def log(
    here: Here, task: str, after: Annotated[int, Query(ge=-1, le=2**53, description="-1: the end.")] = -1
) -> LogPart:
    """At most 64 KiB of the log from byte `after` on, or its end."""
    found = await _task(here, task)
    file = here.settings.home.expanduser() / "logs" / "tasks" / f"{found.id}.log"
    return await asyncio.to_thread(_part, file, after)


@router.post("/{task}/cancel")
async def cancel(here: Here, task: str) -> TaskView:
    """Cancels a waiting task; a running one is killed by its worker."""
    found = await _task(here, task)
    await engine.cancel(here.store, found.id or 0)
    return task_view(await _task(here, task))


@router.post("/{task}/retry")
async def retry(here: Here, task: str) -> list[TaskView]:
    """Sets a task that ended to pending, with those below it; the rows that run again."""
    found = await _task(here, task)
    return [task_view(each) for each in await engine.retry(here.store, here.settings, found.id or 0)]


async def _task(here: Site, reference: str) -> Task:
    found = None if "\0" in reference else await here.store.find(reference)
    if found is None:
        raise NotFoundError(f"There is no task {reference[:80]!r}.")
    return found


def _part(file: Path, after: int) -> LogPart:
    """Whole UTF-8 characters from `after` on; nothing where the task has not run on this machine."""
    try:
        size = file.stat().st_size
        start = min(after, size) if after >= 0 else max(0, size - MOST_LOG)
        with file.open("rb") as source:
            source.seek(start)
            data = source.read(MOST_LOG)
    except FileNotFoundError:
        return LogPart(text="", start=0, next=0, size=0)
    decoder = getincrementaldecoder("utf-8")("replace")
    text = decoder.decode(data, final=start + len(data) >= size)
    held = len(decoder.getstate()[0])  # the beginning of a character whose end comes with the next part
    return LogPart(text=text, start=start, next=start + len(data) - held, size=size)
