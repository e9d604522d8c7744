"""A task as producers and workers speak of it: the row of `echo_tasks`, typed. The words are a contract with programs
that are not ours, so they are spelt here once and nowhere else."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from enum import IntEnum, StrEnum
from uuid import uuid4


class TaskPriority(IntEnum):
    """Lower is sooner."""

    URGENT = 1
    HIGH = 2
    NORMAL = 3
    LOW = 4
    SCHEDULED = 5


class TaskStatus(StrEnum):
    """`retrying` is pending after a failure, with `scheduled_for` as the end of the pause."""

    PENDING = "pending"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    RETRYING = "retrying"


class TaskType(StrEnum):
    """The types that we run. LORA_STAGE is one stage of a pipeline; the others are the old producers'."""

    USER_REQUEST = "user_request"
    LORA_GENERATION = "LORA_GENERATION"
    LORA_TAGGING = "LORA_TAGGING"
    LORA_TRAINING = "LORA_TRAINING"
    LORA_STAGE = "LORA_STAGE"


WAITING = (TaskStatus.PENDING, TaskStatus.RETRYING)
ENDED = (TaskStatus.COMPLETED, TaskStatus.FAILED, TaskStatus.CANCELLED)
# What a waiting row of ours says in the shared table: a member of every host's enum that no host's worker takes.
HELD = TaskStatus.RETRYING

# What `lower(task_type)` must be for a row to be ours; user_request rows are ours only by their payload.
OUR_TYPES = tuple(kind.value.lower() for kind in TaskType if kind is not TaskType.USER_REQUEST)


@dataclass
class Task:
    """One row. `payload` and the other JSON columns hold whatever was written there, checked only when it runs."""

    name: str
    task_type: str = TaskType.USER_REQUEST
    payload: object = field(default_factory=dict)
    priority: int = TaskPriority.NORMAL
    status: str = TaskStatus.PENDING
    id: int | None = None
    uuid: str = field(default_factory=lambda: str(uuid4()))
    created_at: datetime | None = None
    updated_at: datetime | None = None
    scheduled_for: datetime | None = None
    started_at: datetime | None = None
    completed_at: datetime | None = None
    retries: int = 0
    max_retries: int = 3
    timeout: int = 300
    result: object = None
    error: str | None = None
    dependencies: object = field(default_factory=list)
    creator: str | None = None
    pipeline: str | None = None
    progress: object = None
    worker: str | None = None
    lease: str | None = None
    resumes: int = 0
    run: object = None
