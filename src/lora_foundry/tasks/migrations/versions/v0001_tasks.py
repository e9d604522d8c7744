"""The first step: makes `echo_tasks`, or adopts the one that is there by adding nullable columns and nothing
else, and on PostgreSQL the trigger that wakes workers."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from lora_foundry.errors import InputError
from lora_foundry.tasks.schema import OUR_COLUMNS, executors, tasks

revision = "0001"
down_revision = None

CONTRACT = tuple(column.name for column in tasks.columns if column.name not in OUR_COLUMNS)

NOTIFY = """
CREATE OR REPLACE FUNCTION lora_foundry_wake() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN PERFORM pg_notify('echo_tasks', ''); RETURN NULL; END $$;
DROP TRIGGER IF EXISTS lora_foundry_wake ON echo_tasks;
CREATE TRIGGER lora_foundry_wake AFTER INSERT OR UPDATE OF status, cancel_requested ON echo_tasks
FOR EACH ROW WHEN (NEW.status <> 'running' OR NEW.cancel_requested IS NOT NULL)
EXECUTE FUNCTION lora_foundry_wake();
"""


def upgrade() -> None:
    connection = op.get_bind()
    inspector = sa.inspect(connection)
    if inspector.has_table("echo_tasks"):
        _adopt(inspector)
    else:
        tasks.create(connection)
    if not inspector.has_table(executors.name):
        executors.create(connection)
    op.execute("CREATE INDEX IF NOT EXISTS lora_foundry_waiting ON echo_tasks (status, priority, created_at)")
    op.execute("CREATE INDEX IF NOT EXISTS lora_foundry_uuid ON echo_tasks (uuid)")
    if connection.dialect.name == "postgresql":
        op.execute(NOTIFY)


def _adopt(inspector: sa.Inspector) -> None:
    columns = {column["name"]: column for column in inspector.get_columns("echo_tasks")}
    if "id" not in columns or not isinstance(columns["id"]["type"], sa.Integer):
        raise InputError(
            "The table echo_tasks has no integer id made by the database, so it cannot be adopted. Rename it "
            "(ALTER TABLE echo_tasks RENAME TO echo_tasks_old), run `lora-foundry db upgrade` again "
            "and copy the rows over without their ids."
        )
    lacking = [name for name in ("name", "task_type", "status", "payload") if name not in columns]
    if lacking:
        raise InputError(
            f"The table echo_tasks lacks {', '.join(lacking)}, so it is not the table of tasks; "
            "rename it and run `lora-foundry db upgrade` again."
        )
    for column in tasks.columns:
        if column.name not in columns:
            default = column.server_default if column.name in CONTRACT else None
            text = default.arg if isinstance(default, sa.DefaultClause) else None
            constant = (
                text if isinstance(text, str) else None
            )  # SQLite adds no column with a computed default
            op.add_column("echo_tasks", sa.Column(column.name, column.type, server_default=constant))
