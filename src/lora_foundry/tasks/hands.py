"""What people and other programs do to rows of ours by hand, in the shared table: seen by a look at all that waits or runs,
and followed in our tables."""

from __future__ import annotations

import sqlalchemy as sa

from lora_foundry.domain.task import HELD, WAITING, TaskStatus
from lora_foundry.tasks.dependents import drop_attempts, let_children_start, stop_children
from lora_foundry.tasks.rows import MOST_PRIORITY
from lora_foundry.tasks.schema import dependencies, moment, ours, tasks
from lora_foundry.tasks.store import TaskStore

RUNNING = TaskStatus.RUNNING
# SQLite keeps whatever was written as a time; what is none would never be due.
_IS_TIME = sa.cast(tasks.c.scheduled_for, sa.Text).like("____-__-__%")
_WHEN = sa.case((_IS_TIME, tasks.c.scheduled_for), else_=sa.null())


async def follow_hands(store: TaskStore) -> None:
    """What people and other programs did to rows of ours that wait or run: a row that was ended, taken or deleted in
    the shared table is so for us too, and so are its priority and time."""
    async with store.writing() as connection:
        priority = sa.case(
            (tasks.c.priority.between(0, MOST_PRIORITY), tasks.c.priority), else_=ours.c.priority
        )
        changed = sa.or_(ours.c.priority != priority, ours.c.due.is_distinct_from(_WHEN))
        same = (tasks.c.id == ours.c.id) & ours.c.status.in_(WAITING) & changed
        queued = sa.select(ours.c.id).join(tasks, tasks.c.id == ours.c.id).where(same)
        again = ours.c.id.in_((await connection.execute(queued)).scalars().all()) & ours.c.lease.is_not(None)
        await drop_attempts(connection, again)
        await connection.execute(
            ours.update().where(again).values(lease=None, worker=None, queue=ours.c.lane)
        )
        await connection.execute(ours.update().where(same).values(priority=priority, due=_WHEN))
        stamp = moment(await store.now(connection))
        differs = (
            sa.select(ours.c.id, tasks.c.status)
            .outerjoin(tasks, tasks.c.id == ours.c.id)
            .where(
                (ours.c.status.in_(WAITING) & sa.or_(tasks.c.status.is_(None), tasks.c.status != HELD))
                | ((ours.c.status == RUNNING) & sa.or_(tasks.c.status.is_(None), tasks.c.status != RUNNING))
            )
        )
        for number, status in (await connection.execute(differs)).all():
            if status == TaskStatus.PENDING:
                continue  # the inbox sees it
            row = ours.c.id == number
            await drop_attempts(connection, row)
            if status is None:
                await connection.execute(ours.delete().where(row))
            else:
                values = {"status": str(status), "queue": None, "worker": None, "lease": None}
                await connection.execute(ours.update().where(row).values(**values))
            if status == TaskStatus.COMPLETED:
                await let_children_start(connection, number)
            elif status != RUNNING:
                await stop_children(connection, [number], stamp)
            else:
                outside = dependencies.update().where(dependencies.c.parent == number).values(outside=1)
                await connection.execute(outside)
