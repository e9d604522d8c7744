"""The second step: what is ours moves out of `echo_tasks` into a table beside it. Earlier versions had added columns, an
index and a trigger to the shared table; a host that reads whole rows into a class of its own stops at the first column
that it does not know. Its own columns stay, whatever they are called."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

from lora_foundry.domain.task import ENDED, HELD, OUR_TYPES, Task, TaskStatus, TaskType
from lora_foundry.tasks.rows import kind_of, our_row, task_of
from lora_foundry.tasks.schema import Json, dependencies, ours, tasks

revision = "0002"
down_revision = "0001"

# In the order in which the earlier version added them, behind all others.
ADDED: dict[str, type[sa.types.TypeEngine[Any]]] = {
    "uuid": sa.Text,
    "pipeline": sa.Text,
    "progress": sa.types.TypeEngine,  # JSON here, TEXT there
    "worker": sa.Text,
    "ticket": sa.Text,
    "resumes": sa.Integer,
    "cancel_requested": sa.Integer,
}


def upgrade() -> None:
    connection = op.get_bind()
    for table in (ours, dependencies):
        table.create(connection, checkfirst=True)
    old = _ours_among(sa.inspect(connection).get_columns(tasks.name))
    if not _all_ours(connection, old):
        old = []
    if connection.dialect.name == "postgresql":
        op.execute("DROP TRIGGER IF EXISTS lora_foundry_wake ON echo_tasks")
        op.execute("DROP FUNCTION IF EXISTS lora_foundry_wake()")
    _move(connection, old)
    op.execute("DROP INDEX IF EXISTS lora_foundry_uuid")
    op.execute("DROP INDEX IF EXISTS lora_foundry_waiting")
    for name in old:
        op.execute(f"ALTER TABLE echo_tasks DROP COLUMN {name}")


def _ours_among(columns: list[sa.engine.interfaces.ReflectedColumn]) -> list[str]:
    """The columns at the table's end that are named, typed and ordered as the earlier version added them."""
    found: list[str] = []
    order = list(ADDED)
    for column in reversed(columns):
        name = column["name"]
        fits = name in order and isinstance(column["type"], ADDED[name])
        if not fits or (found and order.index(name) >= order.index(found[-1])):
            break
        found.append(name)
    return found if "ticket" in found else []


def _all_ours(connection: sa.Connection, names: list[str]) -> bool:
    """Whether no row of another program's says anything in those columns; else they are that program's."""
    if not names:
        return False
    text = sa.cast(tasks.c.payload, sa.Text)
    kind = sa.func.lower(sa.cast(tasks.c.task_type, sa.Text))
    others = kind.not_in([*OUR_TYPES, TaskType.USER_REQUEST.value]) & sa.func.coalesce(text, "").not_like(
        "%task_uuid%"
    )
    said = sa.or_(*(sa.column(name).is_not(None) for name in names))
    return connection.execute(sa.select(tasks.c.id).where(others, said).limit(1)).first() is None


def _move(connection: sa.Connection, names: list[str]) -> None:
    """Gives each row of ours its line in our table, and holds what waits."""
    maybe = sa.func.lower(sa.cast(tasks.c.task_type, sa.Text)).in_([*OUR_TYPES, TaskType.USER_REQUEST.value])
    added = (sa.column(name, Json() if name == "progress" else None).label(name) for name in names)
    columns = [*tasks.c, *added]
    after = 0
    while rows := connection.execute(
        sa.select(*columns)
        .select_from(tasks)
        .where(maybe, tasks.c.id > after)
        .order_by(tasks.c.id)
        .limit(500)
    ).all():
        after = rows[-1].id
        for row in rows:
            values = dict(row._mapping)
            cancel_requested = values.pop("cancel_requested", None)
            values["lease"] = values.pop("ticket", None)
            _beside(connection, task_of(values), cancel_requested)


def _beside(connection: sa.Connection, task: Task, cancel_requested: object) -> None:
    kind = kind_of(task)
    waits = task.status in (TaskStatus.PENDING, TaskStatus.RETRYING)
    if kind is None or (task.status == TaskStatus.PENDING and not task.uuid):
        return  # nobody has seen it yet; the inbox will
    values = our_row(task, kind) | {"status": task.status, "resumes": task.resumes, "progress": task.progress}
    values |= {"worker": task.worker, "lease": task.lease, "cancel_requested": cancel_requested}
    if not waits:
        values["queue"] = None
    if task.status in ENDED:
        values |= {"worker": None, "lease": None}
    connection.execute(ours.insert().values(**values))
    shared: dict[str, object] = {"status": HELD} if waits else {}
    if task.task_type.lower() == TaskType.LORA_STAGE.lower() and isinstance(task.payload, dict):
        shared |= {"task_type": TaskType.USER_REQUEST}  # the host knows no other of the two
        shared |= {
            "payload": {"task_type": TaskType.LORA_STAGE.lower(), "pipeline": task.pipeline} | task.payload
        }
    if shared:
        connection.execute(tasks.update().where(tasks.c.id == task.id).values(**shared))
