"""Makes the three kinds of task with the contract's defaults. Each payload carries its task's uuid, so that a
queue which stores nothing but payloads still lets us resolve dependencies."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from lora_foundry.domain.character import check_name
from lora_foundry.domain.task import Task, TaskPriority, TaskType
from lora_foundry.settings import Settings


class TakesTasks(Protocol):
    """Any queue with the old `add_task`."""

    async def add_task(self, task: Task) -> object: ...


def _task(task: Task, payload: dict[str, Any]) -> Task:
    given = {key: value for key, value in payload.items() if value is not None}
    task.payload = given | {"task_uuid": task.uuid}
    return task


def create_lora_generation_task(
    character_name: str,
    description: str,
    output_dir: str | None = None,
    reference_image: str | None = None,
    dependencies: Sequence[int | str] = (),
    **extra: Any,
) -> Task:
    """A task that makes the pictures. `extra` may hold `recipe` and `settings`."""
    task = Task(
        name=f"Generate {character_name}",
        task_type=TaskType.LORA_GENERATION,
        priority=TaskPriority.NORMAL,
        timeout=3600,
        max_retries=2,
        dependencies=list(dependencies),
    )
    own = {"character_name": character_name, "description": description, "output_dir": output_dir}
    return _task(task, own | {"reference_image": reference_image} | extra)


def create_lora_tagging_task(
    character_name: str,
    image_dir: str,
    character_tags: str | list[str],
    description: str = "",
    dependencies: Sequence[int | str] = (),
    **extra: Any,
) -> Task:
    """A task that writes the captions."""
    task = Task(
        name=f"Tag {character_name}",
        task_type=TaskType.LORA_TAGGING,
        priority=TaskPriority.NORMAL,
        timeout=300,
        max_retries=2,
        dependencies=list(dependencies),
    )
    tags = character_tags if isinstance(character_tags, str) else ", ".join(character_tags)
    own = {"character_name": character_name, "image_dir": image_dir, "character_tags": character_tags}
    return _task(task, own | {"description": description or tags} | extra)


def create_lora_training_task(
    character_name: str,
    training_dir: str,
    output_name: str,
    base_model: str | None = None,
    dependencies: Sequence[int | str] = (),
    **extra: Any,
) -> Task:
    """A task that trains, measures and installs the LoRA.

    `extra` may hold network_dim, network_alpha, epochs, learning_rate; what is not given is the recipe's choice.
    """
    task = Task(
        name=f"Train {character_name}",
        task_type=TaskType.LORA_TRAINING,
        priority=TaskPriority.HIGH,
        timeout=7200,
        max_retries=1,
        dependencies=list(dependencies),
    )
    own = {"character_name": character_name, "training_dir": training_dir, "output_name": output_name}
    return _task(task, own | {"base_model": base_model} | extra)


async def create_complete_lora_pipeline(
    character_name: str,
    description: str,
    character_tags: str | list[str],
    output_name: str,
    task_queue: TakesTasks,
    *,
    output_root: Path | None = None,
    **extra: Any,
) -> dict[str, str]:
    """Adds the three tasks, each after the one before; `extra` (`recipe`, `settings`) goes into each payload.

    output_root: the workers' folder of datasets, where this program's own settings do not say it.
    """
    folder = (output_root or Settings().datasets_dir) / check_name(character_name)
    generation = create_lora_generation_task(character_name, description, str(folder), **extra)
    tagging = create_lora_tagging_task(
        character_name, str(folder / "images"), character_tags, description, [generation.uuid], **extra
    )
    training = create_lora_training_task(
        character_name, str(folder), output_name, dependencies=[tagging.uuid], **extra
    )
    for task in (generation, tagging, training):
        await task_queue.add_task(task)
    return {
        "generation_task_id": generation.uuid,
        "tagging_task_id": tagging.uuid,
        "training_task_id": training.uuid,
        "output_name": output_name,
        "output_dir": str(folder),
    }
