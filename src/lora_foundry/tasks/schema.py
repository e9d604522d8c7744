"""The two tables, and column types that bear what other programs wrote: a deployed `echo_tasks` may keep its
JSON as json, jsonb or text and its times with or without a zone, and a row by hand may hold rubbish in
either."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Dialect
from sqlalchemy.types import TypeDecorator, TypeEngine


class Json(TypeDecorator[Any]):
    """JSON in a json, jsonb or text column; text that is no JSON is read as that text."""

    impl = sa.Text
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        kind = sa.JSON(none_as_null=True) if dialect.name == "postgresql" else sa.Text()
        return dialect.type_descriptor(kind)

    def process_bind_param(self, value: Any, dialect: Dialect) -> Any:
        return value if value is None or dialect.name == "postgresql" else json.dumps(value)

    def process_result_value(self, value: Any, dialect: Dialect) -> Any:
        if not isinstance(value, str | bytes):
            return value
        try:
            return json.loads(value)
        except ValueError:
            return value


class Moment(TypeDecorator[datetime]):
    """A time in UTC without zone, as the contract's columns have it; what is no time is read as None."""

    impl = sa.Text
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        return dialect.type_descriptor(sa.DateTime() if dialect.name == "postgresql" else sa.Text())

    def process_bind_param(self, value: Any, dialect: Dialect) -> Any:
        if isinstance(value, datetime) and value.tzinfo is not None:
            value = value.astimezone(UTC).replace(tzinfo=None)
        if isinstance(value, datetime) and dialect.name != "postgresql":
            return value.isoformat(" ", "milliseconds")
        return value

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:
        if isinstance(value, str):
            try:
                value = datetime.fromisoformat(value)
            except ValueError:
                return None
        if not isinstance(value, datetime):
            return None
        return value.astimezone(UTC).replace(tzinfo=None) if value.tzinfo else value


metadata = sa.MetaData()

# Column order is the contract's; those after `creator` are ours and may be missing in a table made by others.
tasks = sa.Table(
    "echo_tasks",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("task_type", sa.Text, nullable=False),
    sa.Column("priority", sa.Integer, nullable=False, server_default="3"),
    sa.Column("status", sa.Text, nullable=False, server_default="pending"),
    sa.Column("payload", Json),
    sa.Column("created_at", Moment, server_default=sa.text("CURRENT_TIMESTAMP")),
    sa.Column("updated_at", Moment, server_default=sa.text("CURRENT_TIMESTAMP")),
    sa.Column("scheduled_for", Moment),
    sa.Column("started_at", Moment),
    sa.Column("completed_at", Moment),
    sa.Column("retries", sa.Integer, nullable=False, server_default="0"),
    sa.Column("max_retries", sa.Integer, nullable=False, server_default="3"),
    sa.Column("timeout", sa.Integer, nullable=False, server_default="300"),
    sa.Column("result", Json),
    sa.Column("error", sa.Text),
    sa.Column("dependencies", Json),
    sa.Column("creator", sa.Text),
    sa.Column("uuid", sa.Text),
    sa.Column("pipeline", sa.Text),
    sa.Column("progress", Json),
    sa.Column("worker", sa.Text),
    sa.Column("ticket", sa.Text),
    sa.Column("resumes", sa.Integer),
    sa.Column("cancel_requested", sa.Integer),
)
OUR_COLUMNS = ("uuid", "pipeline", "progress", "worker", "ticket", "resumes", "cancel_requested")

executors = sa.Table(
    "lora_foundry_executors",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("host", sa.Text),
    sa.Column("lanes", sa.Text),
    sa.Column("beat", sa.Double, nullable=False),
)


def clock(dialect: str) -> sa.ColumnElement[float]:
    """Seconds since 1970 by the database's clock, the only one that all hosts share."""
    if dialect == "postgresql":
        return sa.literal_column("extract(epoch from clock_timestamp())::float8", sa.Double)
    return sa.literal_column("((julianday('now') - 2440587.5) * 86400.0)", sa.Double)


def moment(seconds: float) -> datetime:
    """The same instant as the time columns hold it."""
    return datetime.fromtimestamp(seconds, UTC).replace(tzinfo=None)
