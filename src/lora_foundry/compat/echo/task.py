"""A task as the old producers know it: made complete by its maker, with an id (a UUID), both times and members of
enums, since the host's own queue writes exactly what stands on it and swallows what the database says to the rest."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from enum import Enum
from typing import Any
from uuid import UUID, uuid4

from lora_foundry.domain import task as ours
from lora_foundry.domain.task import TaskPriority, TaskStatus, TaskType
from lora_foundry.errors import InputError

CREATOR = "lora_foundry"
_NUMBERS = ("retries", "max_retries", "timeout")
_TIMES = ("created_at", "updated_at", "scheduled_for", "started_at", "completed_at")


def _now() -> datetime:
    """With its zone, so that it is the same moment whatever zone the host's database speaks."""
    return datetime.now(UTC)


@dataclass
class Task:
    """Positions, names and defaults are the host's. `id` is a UUID until a queue hands the task out: then it is the
    row's number, and `uuid` still is the UUID. `task_type` may be a word that is no TaskType: then it is another's."""

    id: int | str = field(default_factory=lambda: str(uuid4()))
    name: str = ""
    task_type: TaskType | str = TaskType.USER_REQUEST
    priority: TaskPriority = TaskPriority.NORMAL
    status: TaskStatus = TaskStatus.PENDING
    payload: Any = field(default_factory=dict)
    created_at: datetime = field(default_factory=_now)
    updated_at: datetime = field(default_factory=_now)
    scheduled_for: datetime | None = None
    started_at: datetime | None = None
    completed_at: datetime | None = None
    retries: int = ours.Task.retries
    max_retries: int = ours.Task.max_retries
    timeout: int = ours.Task.timeout
    result: Any = None
    error: str | None = None
    dependencies: Any = field(default_factory=list)
    creator: str | None = CREATOR

    @property
    def uuid(self) -> str:
        """The UUID that other tasks may name as a dependency; the one in the payload, where there is one."""
        said = self.payload.get("task_uuid") if isinstance(self.payload, dict) else None
        return canonical(said if isinstance(said, str) else self.id)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, times in ISO form."""
        values = asdict(self)
        for name in ("task_type", "priority", "status"):
            values[name] = plain(values[name])
        return values | {name: values[name].isoformat() for name in _TIMES if values[name] is not None}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Task:
        """The task of such values; what it does not know is left out. Raises InputError."""
        known = {each.name for each in fields(cls)}
        values = {name: value for name, value in data.items() if name in known}
        values["priority"] = priority_of(values.get("priority", TaskPriority.NORMAL))
        values["status"] = status_of(values.get("status", TaskStatus.PENDING))
        values["task_type"] = type_of(values.get("task_type", TaskType.USER_REQUEST))
        for name in _TIMES:
            if isinstance(values.get(name), str):
                values[name] = datetime.fromisoformat(values[name])
        return cls(**values)


def canonical(reference: object) -> str:
    """An id or UUID as the table spells it: UUIDs are the same in upper and lower case."""
    text = str(reference).strip()
    try:
        return str(UUID(text)) if len(text) == 36 else text
    except ValueError:
        return text


def plain(value: Any) -> Any:
    """What a member of an enum stands for, ours or a host's; other values as they are."""
    return value.value if isinstance(value, Enum) else value


def priority_of(value: Any) -> TaskPriority:
    """A priority from a number or from any enum's member. Raises InputError."""
    try:
        return TaskPriority(plain(value))
    except ValueError:
        raise InputError(
            f"Priority {str(plain(value))[:40]} does not exist; priorities are 1 (urgent) to 5 (scheduled)."
        ) from None


def status_of(value: Any) -> TaskStatus:
    """A status from its word or from any enum's member. Raises InputError."""
    try:
        return TaskStatus(str(plain(value)).lower())
    except ValueError:
        known = ", ".join(each.value for each in TaskStatus)
        raise InputError(f"There is no status {str(plain(value))[:40]!r}; known: {known}.") from None


def type_of(value: Any) -> TaskType | str:
    """Our member for a type, whichever enum or case it came in; the word itself for a type that is not ours."""
    word = str(plain(value))
    return next((kind for kind in TaskType if kind.lower() == word.lower()), word)


def to_row(task: Any) -> ours.Task:
    """The row of anything that looks like a task: this class, the host's own, or the domain's. Raises InputError."""
    payload, number = getattr(task, "payload", None), getattr(task, "id", None)
    said = payload.get("task_uuid") if isinstance(payload, dict) else None
    named = said or getattr(task, "uuid", None) or (number if isinstance(number, str) else None)
    parents = getattr(task, "dependencies", None) or []
    return ours.Task(
        name=str(getattr(task, "name", "")),
        task_type=str(type_of(getattr(task, "task_type", TaskType.USER_REQUEST))),
        payload=payload,
        priority=priority_of(getattr(task, "priority", TaskPriority.NORMAL)),
        status=status_of(getattr(task, "status", TaskStatus.PENDING)),
        uuid=canonical(named) if named else str(uuid4()),
        scheduled_for=_moment(task),
        **{name: getattr(task, name) for name in _NUMBERS if hasattr(task, name)},
        dependencies=[canonical(each) if isinstance(each, str) else each for each in parents]
        if isinstance(parents, list | tuple)
        else parents,
        creator=getattr(task, "creator", None),
    )


def _moment(task: Any) -> datetime | None:
    """When a task is due; a time without a zone is the producer's local time, except in a row of the table."""
    due = getattr(task, "scheduled_for", None)
    local = isinstance(due, datetime) and due.tzinfo is None and not isinstance(task, ours.Task)
    return due.astimezone(UTC) if local and isinstance(due, datetime) else due


def from_row(row: ours.Task) -> Task:
    """A row as the old API hands it out. Raises InputError for a priority or status that does not exist."""
    payload = row.payload
    if isinstance(payload, dict) and row.uuid:
        payload = payload | {"task_uuid": row.uuid}
    values = {each.name: getattr(row, each.name) for each in fields(Task)} | {"payload": payload}
    for name in ("created_at", "updated_at"):
        values[name] = values[name] or _now()
    return Task.from_dict(values)
