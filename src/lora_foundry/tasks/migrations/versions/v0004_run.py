"""The fourth step: a row holds the run that it asks for, resolved once. Rows from before are resolved when they begin."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from lora_foundry.tasks.schema import ours

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    known = {column["name"] for column in sa.inspect(op.get_bind()).get_columns(ours.name)}
    if ours.c.run.name not in known:  # a table that an earlier step has just made has it already
        op.add_column(ours.name, sa.Column(ours.c.run.name, ours.c.run.type))
