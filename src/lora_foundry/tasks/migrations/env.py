"""Alembic's entry: runs the steps on the connection it is handed, with a version table of our own, since the
host program's database may have its own Alembic history."""

from __future__ import annotations

from alembic import context

context.configure(
    connection=context.config.attributes["connection"],
    version_table="lora_foundry_version",
    transactional_ddl=False,
)
context.run_migrations()
