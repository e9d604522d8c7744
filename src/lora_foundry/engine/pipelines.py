"""A whole pipeline as linked rows, one a stage: each starts when the one before is completed, on whichever
worker."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

from lora_foundry.domain.character import Character
from lora_foundry.domain.task import Task, TaskPriority, TaskType
from lora_foundry.pipeline import PIPELINE


def pipeline_tasks(
    character: Character,
    *,
    recipe: str | None = None,
    settings: dict[str, Any] | None = None,
    output_name: str | None = None,
    creator: str | None = None,
) -> list[Task]:
    """The rows of one pipeline, to be handed to `Ledger.add` together. `settings` are recipe values, nested or not."""
    pipeline = str(uuid4())
    made: list[Task] = []
    for stage in PIPELINE:
        task = Task(
            name=f"{stage.name} {character.name}",
            task_type=TaskType.LORA_STAGE,
            priority=TaskPriority.NORMAL,
            timeout=stage.timeout,
            max_retries=stage.retries,
            dependencies=[made[-1].uuid] if made else [],
            creator=creator,
            pipeline=pipeline,
        )
        payload = {
            "stage": stage.name,
            "character_name": character.name,
            "description": character.description,
            "character_tags": list(character.tags),
            "trigger": character.trigger,
            "recipe": recipe,
            "settings": settings or {},
            "output_name": output_name,
            "task_uuid": task.uuid,
        }
        task.payload = payload
        made.append(task)
    return made
