"""The tables. `echo_tasks` is shared with other programs and holds the contract's columns and nothing else; it is never
altered. What is ours stands in `lora_foundry_tasks` by the same id, and who waits for whom in
`lora_foundry_dependencies`. The column types bear what others wrote or deployed: JSON as json, jsonb or text, statuses
as an enum, times with or without a zone, ids of 64 bits, and rubbish by hand in any of them."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Dialect
from sqlalchemy.types import TypeDecorator, TypeEngine, UserDefinedType

from lora_foundry.domain.task import HELD, TaskStatus

_LONE_NUL = re.compile(r"(?<!\\)((?:\\\\)*)\\u0000")
# Escapes that make NUL or half a surrogate pair; most JSON has none, and is then not looked at again.
_ODD_ESCAPE = re.compile(r"\\u(?:0000|[dD][89a-fA-F])")
DEEPEST = 100


class Uncast(UserDefinedType[Any]):
    """A PostgreSQL type whose values are sent without a cast, so that the column decides what they are."""

    cache_ok = True

    def __init__(self, spec: str) -> None:
        self.spec = spec

    def get_col_spec(self, **options: Any) -> str:
        return self.spec


class Word(TypeDecorator[str]):
    """Text that may be an enum in a table which others deployed."""

    impl = sa.Text
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        return dialect.type_descriptor(Uncast("TEXT") if dialect.name == "postgresql" else sa.Text())

    def process_bind_param(self, value: Any, dialect: Dialect) -> Any:
        return None if value is None else str(value)

    def process_result_value(self, value: Any, dialect: Dialect) -> Any:
        return value if value is None or isinstance(value, str) else str(value)


class Json(TypeDecorator[Any]):
    """JSON in a json, jsonb or text column, read as text and decoded row by row: what is no JSON, or is nested deeper
    than DEEPEST, is handed on as that text, NUL and half characters are replaced, and so no row stops the reading or the
    showing of another."""

    impl = sa.Text
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        return dialect.type_descriptor(Uncast("JSON") if dialect.name == "postgresql" else sa.Text())

    def column_expression(self, column: sa.ColumnElement[Any]) -> sa.ColumnElement[Any]:
        return sa.type_coerce(sa.cast(column, sa.Text), self)

    def process_bind_param(self, value: Any, dialect: Dialect) -> Any:
        return None if value is None else json.dumps(value)

    def process_result_value(self, value: Any, dialect: Dialect) -> Any:
        if not isinstance(value, str | bytes):
            return value
        text = value if isinstance(value, str) else value.decode("utf-8", "replace")
        try:
            read = json.loads(text)
            if text.count("[") + text.count("{") > DEEPEST and _is_deep(read):
                return text
            return clean_json(read) if _ODD_ESCAPE.search(text) else read
        except (ValueError, RecursionError):
            return text


class Moment(TypeDecorator[datetime]):
    """A time in UTC without zone, as the contract's columns have it; what is no time is read as None."""

    impl = sa.Text
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        return dialect.type_descriptor(Uncast("TIMESTAMP") if dialect.name == "postgresql" else sa.Text())

    def column_expression(self, column: sa.ColumnElement[Any]) -> sa.ColumnElement[Any]:
        return sa.type_coerce(
            sa.cast(column, sa.Text), self
        )  # `infinity` is a time there, and none in Python

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
ID = sa.BigInteger().with_variant(sa.Integer, "sqlite")

tasks = sa.Table(
    "echo_tasks",
    metadata,
    sa.Column("id", ID, primary_key=True, autoincrement=True),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("task_type", Word, nullable=False),
    sa.Column("priority", sa.Integer, nullable=False, server_default="3"),
    sa.Column("status", Word, nullable=False, server_default="pending"),
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
)

# queue: the lane in which the row may start, NEW until its dependencies were looked up, NULL while it waits for a
# parent, is queued in the engine, runs or has ended. So what may start is found by an index, however many rows wait.
# lease: the name of the attempt that is queued or runs; worker: who runs it, or alone will. status: the row's, with
# `pending` where the shared table says HELD. priority, due: copies for that index. before: what a row that runs again
# had been, as JSON. folder: a name for the folder that it works in, where one attempt works at a time; root: the first
# row of those that belong together, begun: whether one of them has been started. version: of the character; NULL for the
# old producers' tasks. run: what the row asks for, resolved once: every attempt does that, whatever has become of recipe
# files and settings since.
ours = sa.Table(
    "lora_foundry_tasks",
    metadata,
    sa.Column("id", ID, primary_key=True, autoincrement=False),
    sa.Column("uuid", sa.Text),
    sa.Column("pipeline", sa.Text),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("lane", sa.Text, nullable=False),
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("queue", sa.Text),
    sa.Column("priority", sa.Integer, nullable=False),
    sa.Column("due", Moment),
    sa.Column("progress", Json),
    sa.Column("worker", sa.Text),
    sa.Column("lease", sa.Text),
    sa.Column("resumes", sa.Integer, nullable=False, server_default="0"),
    sa.Column("cancel_requested", sa.Integer),
    sa.Column("before", Json),
    sa.Column("version", sa.Integer),
    sa.Column("folder", sa.Text),
    sa.Column("root", ID),
    sa.Column("begun", sa.Integer, nullable=False, server_default="0"),
    sa.Column("run", Json),
    sa.Index("lora_foundry_tasks_queue", "queue", "priority", "id"),
    sa.Index("lora_foundry_tasks_status", "status"),
    sa.Index("lora_foundry_tasks_folder", "folder", "status"),
    sa.Index("lora_foundry_tasks_root", "root"),
    sa.Index("lora_foundry_tasks_uuid", "uuid"),
    sa.Index("lora_foundry_tasks_pipeline", "pipeline", "id"),
)
NEW = "new"

# outside: the parent is another program's row, whose end nobody tells us.
dependencies = sa.Table(
    "lora_foundry_dependencies",
    metadata,
    sa.Column("parent", ID, primary_key=True, autoincrement=False),
    sa.Column("child", ID, primary_key=True, autoincrement=False),
    sa.Column("outside", sa.Integer, nullable=False, server_default="0"),
    sa.Index("lora_foundry_dependencies_child", "child"),
    sa.Index("lora_foundry_dependencies_outside", "outside"),
)

# Attempts whose rows no longer want them, until a worker has taken them out of the engine's queues.
dropped = sa.Table("lora_foundry_dropped", metadata, sa.Column("lease", sa.Text, primary_key=True))

executors = sa.Table(
    "lora_foundry_executors",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("host", sa.Text),
    sa.Column("lanes", sa.Text),
    sa.Column("beat", sa.Double, nullable=False),
)

# A row as people and we see it: both tables, and `pending` for what is only held out of another worker's reach.
is_held = (tasks.c.status == HELD) & (ours.c.status == TaskStatus.PENDING)
shown_status = sa.case(
    (is_held, sa.literal(TaskStatus.PENDING.value, sa.Text)), else_=sa.cast(tasks.c.status, sa.Text)
)
both = tasks.outerjoin(ours, ours.c.id == tasks.c.id)
OURS_SHOWN = ("uuid", "pipeline", "progress", "worker", "lease", "resumes")


def whole_row() -> sa.Select[Any]:
    """Rows with all that a Task has."""
    shared = [column for column in tasks.c if column.name != "status"]
    own = [ours.c[name] for name in OURS_SHOWN]
    return sa.select(*shared, shown_status.label("status"), *own).select_from(both)


def clock(dialect: str) -> sa.ColumnElement[float]:
    """Seconds since 1970 by the database's clock, the only one that all hosts share."""
    if dialect == "postgresql":
        return sa.literal_column("extract(epoch from clock_timestamp())::float8", sa.Double)
    return sa.literal_column("((julianday('now') - 2440587.5) * 86400.0)", sa.Double)


def moment(seconds: float) -> datetime:
    """The same instant as the time columns hold it."""
    return datetime.fromtimestamp(seconds, UTC).replace(tzinfo=None)


def _is_deep(value: Any) -> bool:
    """Whether JSON is nested deeper than those who show it can follow."""
    level = [value]
    for _ in range(DEEPEST):
        parts = (
            each.values() if isinstance(each, dict) else each
            for each in level
            if isinstance(each, dict | list)
        )
        level = [inner for part in parts for inner in part]
    return bool(level)


def clean_json(value: Any) -> Any:
    """A result or progress without what jsonb refuses: NUL and halves of surrogate pairs."""
    text = json.dumps(value, ensure_ascii=False).encode("utf-8", "replace").decode()
    return json.loads(_LONE_NUL.sub(r"\1\\ufffd", text))
