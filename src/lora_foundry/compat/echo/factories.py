"""Makes the three kinds of task with the contract's defaults, and the pipeline of all three. Each payload carries its
task's uuid, so that a queue which stores nothing but payloads still lets us resolve dependencies."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from lora_foundry.compat.echo.queue import TaskQueue
from lora_foundry.compat.echo.task import Task, canonical, plain, priority_of
from lora_foundry.domain.character import check_name
from lora_foundry.domain.task import TaskPriority, TaskType
from lora_foundry.errors import BackendError, InputError
from lora_foundry.settings import Settings

Reference = int | str
# What the work is called, its timeout in seconds and its retries: the contract's.
_KINDS = {
    TaskType.LORA_GENERATION: ("Generate LORA training images", 3600, 2),
    TaskType.LORA_TAGGING: ("Tag LORA training images", 300, 2),
    TaskType.LORA_TRAINING: ("Train LORA model", 7200, 1),
}


class TakesTasks(Protocol):
    """Any queue with the old `add_task`; one that answers False has refused the task."""

    async def add_task(self, task: Task) -> object: ...


def create_lora_generation_task(
    character_name: str,
    description: str,
    output_dir: str | None = None,
    reference_image: str | None = None,
    priority: Any = TaskPriority.NORMAL,
    depends_on: Reference | None = None,
    *,
    dependencies: Sequence[Reference] = (),
    **extra: Any,
) -> Task:
    """A task that makes the pictures. `extra` may hold `recipe` and `settings`.

    priority: a number or a member of any enum. depends_on, dependencies: ids or UUIDs of tasks that must be completed.
    """
    own = {"description": description, "output_dir": output_dir, "reference_image": reference_image}
    parents = _parents(depends_on, dependencies)
    return _task(TaskType.LORA_GENERATION, character_name, priority, parents, own | extra)


def create_lora_tagging_task(
    character_name: str,
    image_dir: str,
    character_tags: str | list[str] | None = None,
    description: str = "",
    priority: Any = TaskPriority.NORMAL,
    depends_on: Reference | None = None,
    *,
    dependencies: Sequence[Reference] = (),
    **extra: Any,
) -> Task:
    """A task that writes the captions. The tags stand for the description where none is given, and the other way."""
    tags = character_tags or description
    words = tags if isinstance(tags, str) else ", ".join(tags)
    own = {"image_dir": image_dir, "character_tags": tags, "description": description or words}
    parents = _parents(depends_on, dependencies)
    return _task(TaskType.LORA_TAGGING, character_name, priority, parents, own | extra)


def create_lora_training_task(  # noqa: PLR0913, PLR0917 - the names and places are the host's
    character_name: str,
    training_dir: str,
    output_name: str,
    base_model: str | None = None,
    network_dim: int | None = None,
    network_alpha: float | None = None,
    epochs: int | None = None,
    learning_rate: float | None = None,
    priority: Any = TaskPriority.HIGH,
    depends_on: Reference | None = None,
    *,
    dependencies: Sequence[Reference] = (),
    **extra: Any,
) -> Task:
    """A task that trains, measures and installs the LoRA; what is not given is the recipe's choice."""
    own = {"training_dir": training_dir, "output_name": output_name, "base_model": base_model}
    numbers = {"network_dim": network_dim, "network_alpha": network_alpha, "epochs": epochs}
    payload = own | numbers | {"learning_rate": learning_rate} | extra
    parents = _parents(depends_on, dependencies)
    return _task(TaskType.LORA_TRAINING, character_name, priority, parents, payload)


async def create_complete_lora_pipeline(
    character_name: str,
    description: str,
    character_tags: str | list[str] | None = None,
    output_name: str | None = None,
    task_queue: TakesTasks | None = None,
    *,
    output_root: Path | None = None,
    **extra: Any,
) -> dict[str, str]:
    """Adds the three tasks, each after the one before; `extra` (`recipe`, `settings`) goes into each payload.

    task_queue: ours, which takes all three or none, or the host's. output_root: the workers' folder of datasets, where
    this program's own settings do not say it. Raises InputError without a queue, BackendError where it refuses a task.
    """
    if task_queue is None:
        raise InputError("A pipeline needs a queue: pass task_queue=, a TaskQueue that was initialized.")
    name = check_name(character_name)
    output_name = output_name or f"{name.lower().replace(' ', '_')}_lora"
    folder = (output_root or Settings().datasets_dir) / name
    generation = create_lora_generation_task(name, description, str(folder), **extra)
    tagging = create_lora_tagging_task(
        name, str(folder / "images"), character_tags, description, depends_on=generation.uuid, **extra
    )
    training = create_lora_training_task(name, str(folder), output_name, depends_on=tagging.uuid, **extra)
    await _add_all(task_queue, [generation, tagging, training])
    return {
        "character_name": name,
        "generation_task_id": generation.uuid,
        "tagging_task_id": tagging.uuid,
        "training_task_id": training.uuid,
        "output_name": output_name,
        "output_dir": str(folder),
    }


async def _add_all(queue: TakesTasks, tasks: Sequence[Task]) -> None:
    """All tasks in order. A queue of another program takes them one by one, and says False where it took one not."""
    if isinstance(queue, TaskQueue):
        await queue.add_tasks(*tasks)
        return
    for number, task in enumerate(tasks):
        if await queue.add_task(task) is False:
            left = ", ".join(each.uuid for each in tasks[:number])
            what = f" Cancel those that it has taken: {left}." if left else ""
            raise BackendError(
                f"The queue refused the task {task.name!r}, so there is no pipeline; its own log says why.{what}"
            )


def _parents(depends_on: Reference | None, dependencies: Sequence[Reference]) -> list[Reference]:
    named = ([] if depends_on is None else [depends_on]) + list(dependencies)
    return [canonical(each) if isinstance(each, str) else each for each in named]


def _task(
    kind: TaskType, character_name: str, priority: Any, parents: list[Reference], payload: dict[str, Any]
) -> Task:
    """The task with what was given in its payload; a host's enum there becomes what it stands for. Raises InputError."""
    work, timeout, max_retries = _KINDS[kind]
    task = Task(
        name=f"{work} for {check_name(character_name)}",
        task_type=kind,
        priority=priority_of(priority),
        timeout=timeout,
        max_retries=max_retries,
        dependencies=parents,
    )
    payload = {"character_name": character_name} | payload
    given = {key: plain(value) for key, value in payload.items() if value is not None}
    task.payload = given | {"task_uuid": task.uuid}
    return task
