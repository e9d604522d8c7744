"""The third step: attempts are workflows in the engine's queues. A row whose attempt was queued and is no longer wanted
leaves the workflow's name here, in the same transaction, and a worker takes it out of the queue."""

from __future__ import annotations

from alembic import op

from lora_foundry.tasks.schema import dropped

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    dropped.create(op.get_bind(), checkfirst=True)
