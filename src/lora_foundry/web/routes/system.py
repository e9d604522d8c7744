"""The machine: who works on what, what is left of disk and GPU memory, and what the doctor finds missing."""

from __future__ import annotations

import asyncio
from datetime import datetime

from fastapi import APIRouter
from pydantic import BaseModel

from lora_foundry import __version__
from lora_foundry.domain.task import Task
from lora_foundry.recipe_files import recipe_names
from lora_foundry.tasks.recovery import WorkerState, workers
from lora_foundry.web import machine
from lora_foundry.web.machine import ComfyState, Disk, Finding, Gpu
from lora_foundry.web.problems import NotFoundError
from lora_foundry.web.routes import Page
from lora_foundry.web.site import Here

router = APIRouter(prefix="/api/v1/system", tags=["server"])
PAGES = (Page("/system", "system", "System", "M4 19V9m5 10V5m5 14v-7m5 7V8", place=3),)


class WorkerView(BaseModel):
    """A worker whose heartbeat is fresh; `tasks` are the rows it holds, `doing` what these are called."""

    name: str
    host: str
    lanes: str
    last_seen: datetime
    tasks: list[int]
    doing: list[str] = []


class System(BaseModel):
    version: str
    database: str
    counts: dict[str, int]
    workers: list[WorkerView]
    comfyui: ComfyState
    gpus: list[Gpu]
    disks: list[Disk]
    streams: int


class Findings(BaseModel):
    """What the doctor says of a recipe on this machine."""

    recipe: str
    findings: list[Finding]


@router.get("")
async def system(here: Here) -> System:
    """Quick: nothing is loaded. ComfyUI's and the GPU's state are a few seconds old at most."""
    settings = here.settings
    counts, alive, held = await asyncio.gather(
        here.store.counts(), workers(here.store), here.store.recent(status="running", limit=500)
    )
    comfyui, gpus, disks = await asyncio.gather(
        here.machine.comfyui(settings),
        here.machine.gpus(),
        asyncio.to_thread(machine.disks, settings.datasets_dir, settings.loras_dir),
    )
    return System(
        version=__version__,
        database=here.store.dialect,
        counts=counts,
        workers=[_worker(each, [task for task in held if task.worker == each.name]) for each in alive],
        comfyui=comfyui,
        gpus=gpus,
        disks=disks,
        streams=here.hub.open_streams,
    )


@router.get("/doctor")
async def doctor(here: Here, recipe: str | None = None) -> Findings:
    """Takes some seconds at first: a process of its own looks at torch, folders and servers. Kept for a minute."""
    name = recipe or here.settings.recipe
    known = recipe_names(here.settings.recipe_folders)
    if name not in known:
        raise NotFoundError(f"There is no recipe {name[:80]!r}; the recipes are {', '.join(known)}.")
    return Findings(recipe=name, findings=await here.machine.doctor(here.settings, name))


def _worker(state: WorkerState, held: list[Task]) -> WorkerView:
    return WorkerView(
        tasks=[task.id or 0 for task in held], doing=[task.name for task in held], **state._asdict()
    )
