"""Rows as tasks, tasks as rows, and the queries that name them: what is read is whatever others wrote, so nothing here
raises for a value that it finds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import uuid4

import sqlalchemy as sa

from lora_foundry.domain.task import HELD, Task, TaskStatus
from lora_foundry.tasks.payloads import Kind, lane_of, recognise
from lora_foundry.tasks.schema import NEW, OURS_SHOWN, ours, tasks

LONGEST_UUID = 64
LARGEST_ID = 2**63 - 1
MOST_PRIORITY = 1000
MOST_VERSIONS = 100_000
_NUMBERS = (("priority", 3), ("retries", 0), ("max_retries", 3), ("timeout", 300), ("resumes", 0))


def to_task(row: sa.Row[Any]) -> Task:
    """A row of `whole_row` as a Task."""
    names = (*(column.name for column in tasks.c), *OURS_SHOWN)
    return task_of({name: row._mapping[name] for name in names})


def task_of(values: dict[str, Any]) -> Task:
    """Columns as a Task; numbers that are no numbers become the contract's defaults, and words are text."""
    for name, default in _NUMBERS:
        if not isinstance(values.get(name), int):
            values[name] = default
    for name in ("name", "task_type", "status"):
        values[name] = str(values.get(name) or "")
    for name in ("error", "creator"):
        values[name] = None if values.get(name) is None else str(values[name])
    values["uuid"] = values.get("uuid") or ""
    return Task(**values)


def kind_of(task: Task) -> Kind | None:
    """Which of our kinds a row is; None for another program's, and for one that cannot even be told."""
    try:
        return recognise(task.task_type, task.payload)
    except Exception:
        return None


def our_row(task: Task, kind: Kind) -> dict[str, Any]:
    """What stands beside a row of ours that waits and whose dependencies have not been looked up."""
    payload = task.payload if isinstance(task.payload, dict) else {}
    pipeline = task.pipeline or payload.get("pipeline")
    return {
        "id": task.id,
        "uuid": _uuid_of(task.uuid) or _uuid_of(payload.get("task_uuid")) or str(uuid4()),
        "pipeline": pipeline if _uuid_of(pipeline) else None,
        "kind": kind,
        "lane": lane_of(kind, payload),
        "status": TaskStatus.PENDING.value,
        "queue": NEW,
        "priority": max(0, min(task.priority, MOST_PRIORITY)),
        "due": task.scheduled_for,
        "resumes": 0,
        "version": _version_of(payload.get("version")),
        "folder": _folder_of(payload),
        **{"root": None, "begun": 0, "run": task.run},
        **{"progress": None, "worker": None, "lease": None, "cancel_requested": None, "before": None},
    }


def _version_of(value: object) -> int | None:
    return value if isinstance(value, int) and 0 < value <= MOST_VERSIONS else None


def _folder_of(payload: Mapping[str, Any]) -> str | None:
    """A name for the folder that a task works in. That two of one name wait for each other costs only time."""
    for key in ("output_dir", "image_dir", "training_dir", "character_name"):
        given = payload.get(key)
        if isinstance(given, str) and given.strip():
            parts = [part for part in given.replace("\\", "/").lower().split("/") if part]
            named = [part for part in parts if part != "images"]
            return named[-1][:200].encode("utf-8", "replace").decode().replace("\0", "?") if named else None
    return None


def _uuid_of(value: object) -> str | None:
    """A name that rows may be called by, in small letters; None for what is none."""
    fits = (
        isinstance(value, str) and 0 < len(value) <= LONGEST_UUID and value.isascii() and value.isprintable()
    )
    return str(value).lower() if fits else None


def before_of(task: Task) -> dict[str, Any] | None:
    """What a completed task was, to be that again if it is cancelled before it runs again."""
    if task.status != TaskStatus.COMPLETED or task.completed_at is None:
        return None
    times = {"started_at": task.started_at, "completed_at": task.completed_at}
    plain: dict[str, Any] = {name: when.isoformat() if when else None for name, when in times.items()}
    plain |= {"result": task.result, "progress": task.progress, "worker": task.worker}
    return plain | {"retries": task.retries}


def time_of(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)


def newest_of(status: str, limit: int) -> sa.Select[Any]:
    """The ids of the newest rows of a status, found by an index where the shared table has one for it."""
    shared = sa.select(tasks.c.id).where(tasks.c.status == status)
    if status == HELD:  # most rows that say so are only held
        shared = shared.where(tasks.c.id.not_in(sa.select(ours.c.id).where(ours.c.status != status)))
    shared = shared.order_by(tasks.c.id.desc()).limit(limit)
    beside = sa.select(ours.c.id).where(ours.c.status == status, sa.literal(status == TaskStatus.PENDING))
    beside = beside.order_by(ours.c.id.desc()).limit(limit)
    return sa.select(sa.union_all(sa.select(shared.subquery()), sa.select(beside.subquery())).subquery().c.id)


def refers_to(references: Sequence[int | str]) -> sa.ColumnElement[bool]:
    """The rows that one of these ids or uuids means."""
    names = [str(each) for each in references]
    digits = [int(each) for each in names if each.isascii() and each.isdigit() and len(each) < 20]
    numbers = [number for number in digits if number <= LARGEST_ID]
    words = [word for each in names if (word := _uuid_of(each))]
    return tasks.c.id.in_(numbers) | tasks.c.id.in_(sa.select(ours.c.id).where(ours.c.uuid.in_(words)))
