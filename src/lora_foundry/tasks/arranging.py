"""The order of what waits: a run is put before others, or paused, which are the priority and the time of its rows."""

from __future__ import annotations

from datetime import datetime

from lora_foundry.domain.task import WAITING, TaskPriority
from lora_foundry.errors import InputError
from lora_foundry.tasks.schema import ours
from lora_foundry.tasks.store import TaskStore

NEVER = datetime(9999, 1, 1)  # naive UTC, as the table's times


def is_paused(scheduled_for: datetime | None) -> bool:
    """Whether a row's time is that of a paused one."""
    return scheduled_for is not None and scheduled_for.year >= NEVER.year


async def arrange(
    store: TaskStore, pipeline: str, *, priority: TaskPriority | None = None, paused: bool | None = None
) -> int:
    """Changes priority and time of those rows of a pipeline that wait, and says how many; a stage that runs goes on to its
    end. Raises InputError where none waits, or where nothing is to be changed."""
    if priority is None and paused is None:
        raise InputError("Say a priority, or whether the run is paused.")
    waiting = await store.where((ours.c.pipeline == pipeline) & ours.c.status.in_(WAITING))
    if not waiting:
        raise InputError("No stage of this run waits, so there is nothing to arrange.")
    changes: dict[str, object] = {}
    if priority is not None:
        changes["priority"] = int(priority)
    if paused is not None:
        changes["scheduled_for"] = NEVER if paused else None
    await store.arrange([row.id or 0 for row in waiting], **changes)
    return len(waiting)
