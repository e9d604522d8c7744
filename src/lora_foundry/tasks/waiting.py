"""What a row that could run waits for: another run in its folder, or workers that all do something else."""

from __future__ import annotations

import socket
from typing import Any

import sqlalchemy as sa

from lora_foundry.domain.task import WAITING, Task, TaskStatus
from lora_foundry.tasks.devices import lanes_for
from lora_foundry.tasks.recovery import workers
from lora_foundry.tasks.schema import ours
from lora_foundry.tasks.store import TaskStore

RUNNING = TaskStatus.RUNNING


async def waits_until(store: TaskStore, task_id: int, alone: bool = False) -> str | None:
    """What comes first, as in "until generate of Elara has ended: ..."; None where nothing does, and a worker takes the row in
    a moment. alone: a worker of the row's own pipeline is there, too."""
    columns = (ours.c.lane, ours.c.folder, ours.c.root, ours.c.worker, ours.c.lease)
    async with store.reading() as connection:
        row = (await connection.execute(sa.select(*columns).where(ours.c.id == task_id))).first()
    if row is None:
        return None
    if before := await _in_folder(store, row, alone):
        return f"until the other run of {_whose(before)} has ended: one run at a time works in a folder."
    if row.worker is not None or (alone and row.lease is None):
        return None  # it is for the worker of its own pipeline, which does nothing else
    return await _in_lane(store, row.lane, task_id)


async def _in_folder(store: TaskStore, row: Any, alone: bool) -> Task | None:
    """A row of another run that `attempts.folder_is_taken` means; one whose worker is dead is given back in a moment."""
    if not row.folder:
        return None
    works = (ours.c.status == RUNNING) & ours.c.worker.in_([each.name for each in await workers(store)])
    begun = ours.c.status.in_(WAITING) & (ours.c.begun == 1)
    found = await store.where(
        (ours.c.folder == row.folder) & (ours.c.root != row.root) & (works if alone else works | begun)
    )
    return found[0] if found else None


async def _in_lane(store: TaskStore, lane: str, task_id: int) -> str | None:
    """What the workers of a lane do, where none of them has room for more; a row that has just begun is no such thing."""
    fitting = [each for each in await workers(store) if lane in each.lanes.split(",")]
    held = (ours.c.status == RUNNING) & (ours.c.lane == lane) & (ours.c.id != task_id)
    busy = await store.where(held & ours.c.worker.in_([each.name for each in fitting]))
    if not fitting or len(busy) < len(fitting) * lanes_for("all")[lane]:
        return None
    here = lane == "gpu" and [each.host for each in fitting] == [socket.gethostname()]
    why = "this machine does one thing at a time" if here else "every worker is busy"
    return f"until {_told(busy[0])} has ended: {why}."


def _told(task: Task) -> str:
    """A task as people speak of it: our own are called by their stage and character."""
    stage, _, character = task.name.partition(" ")
    return f"{stage} of {character}" if task.pipeline and character else task.name


def _whose(task: Task) -> str:
    return task.name.partition(" ")[2] if task.pipeline else task.name
