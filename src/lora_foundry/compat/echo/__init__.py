"""The old producers' API, name for name, over the store: what Echo Brain imports, it finds here."""

from lora_foundry.compat.echo.factories import (
    create_complete_lora_pipeline,
    create_lora_generation_task,
    create_lora_tagging_task,
    create_lora_training_task,
)
from lora_foundry.compat.echo.handlers import leave_lora_tasks, register_lora_handlers
from lora_foundry.compat.echo.queue import TaskQueue
from lora_foundry.compat.echo.task import Task
from lora_foundry.compat.echo.worker import BackgroundWorker
from lora_foundry.domain.task import TaskPriority, TaskStatus, TaskType

__all__ = [
    "BackgroundWorker",
    "Task",
    "TaskPriority",
    "TaskQueue",
    "TaskStatus",
    "TaskType",
    "create_complete_lora_pipeline",
    "create_lora_generation_task",
    "create_lora_tagging_task",
    "create_lora_training_task",
    "leave_lora_tasks",
    "register_lora_handlers",
]
