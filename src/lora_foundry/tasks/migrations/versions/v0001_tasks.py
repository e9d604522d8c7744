"""The first step: makes `echo_tasks` where there is none, or looks whether the one that is there can be used as it is.
A table that others made is never altered."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from lora_foundry.domain.task import TaskStatus
from lora_foundry.errors import InputError
from lora_foundry.tasks.schema import executors, tasks

revision = "0001"
down_revision = None


def upgrade() -> None:
    connection = op.get_bind()
    inspector = sa.inspect(connection)
    if inspector.has_table(tasks.name):
        check(inspector)
    else:
        tasks.create(connection)
        op.create_index("echo_tasks_status", tasks.name, ["status", "id"])
    if not inspector.has_table(executors.name):
        executors.create(connection)


def check(inspector: sa.Inspector) -> None:
    """Raises InputError, with the way out, for a table that our rows do not fit into."""
    columns = {column["name"]: column for column in inspector.get_columns(tasks.name)}
    if "id" not in columns or not isinstance(columns["id"]["type"], sa.Integer):
        raise InputError(
            "The table echo_tasks has no integer id made by the database, so it cannot be adopted. Rename it "
            "(ALTER TABLE echo_tasks RENAME TO echo_tasks_old), run `lora-foundry db upgrade` again "
            "and copy the rows over without their ids."
        )
    lacking = [column.name for column in tasks.columns if column.name not in columns]
    if lacking:
        raise InputError(
            f"The table echo_tasks lacks {', '.join(lacking)}, and another program's table is not altered. If it is "
            "the table of tasks, add them (ALTER TABLE echo_tasks ADD COLUMN ...), else rename it; then run "
            "`lora-foundry db upgrade` again."
        )
    known = getattr(columns["status"]["type"], "enums", None)
    missing = [status.value for status in TaskStatus if known is not None and status.value not in known]
    if missing:
        raise InputError(
            f"The type of echo_tasks.status does not know {', '.join(missing)}; add each with ALTER TYPE "
            f"{getattr(columns['status']['type'], 'name', '')} ADD VALUE '...', and run `lora-foundry db upgrade` again."
        )
