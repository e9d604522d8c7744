"""The order of what waits: a run is put before others, or paused. Both are written where any other program would write them, as
the priority and the time of the rows in the shared table, which is so for every worker."""

from __future__ import annotations

from datetime import datetime

from lora_foundry.domain.task import WAITING, TaskPriority
from lora_foundry.errors import InputError
from lora_foundry.tasks.schema import moment, ours, tasks
from lora_foundry.tasks.store import TaskStore

NEVER = datetime(9999, 1, 1)  # naive UTC, as the table's times


def is_paused(scheduled_for: datetime | None) -> bool:
    """Whether a row's time is that of a paused one."""
    return scheduled_for is not None and scheduled_for.year >= NEVER.year


async def arrange(
    store: TaskStore, pipeline: str, *, priority: TaskPriority | None = None, paused: bool | None = None
) -> int:
    """Changes priority and time of those rows of a pipeline that wait, and says how many; a stage that runs goes on to its
    end. Raises InputError where none waits."""
    waiting = await store.where((ours.c.pipeline == pipeline) & ours.c.status.in_(WAITING))
    if not waiting:
        raise InputError("No stage of this run waits, so there is nothing to arrange.")
    values: dict[str, object] = {}
    if priority is not None:
        values["priority"] = int(priority)
    if paused is not None:
        values["scheduled_for"] = NEVER if paused else None
    ids = [row.id for row in waiting]
    async with store.writing() as connection:
        stamp = moment(await store.now(connection))
        await connection.execute(tasks.update().where(tasks.c.id.in_(ids)).values(updated_at=stamp, **values))
        await store.wake(connection)
    return len(ids)
