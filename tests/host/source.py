"""The real host's classes, from a copy of its source (LORA_FOUNDRY_HOST_SOURCE: the folder that holds its `src`), which
is not part of this project. Its packages import half of the host, so its modules are loaded without them, and what its
worker imports beside and no test uses is left empty."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

_EMPTY = {
    "src.tasks.autonomous_repair_executor": ("repair_executor",),
    "src.tasks.task_implementation_executor": ("get_task_implementation_executor",),
}


def load(folder: Path) -> Any:
    """The host's queue, worker, task and enums, as the double has them."""
    for name in ("src", "src.tasks", "src.workers"):
        package = ModuleType(name)
        package.__path__ = [str(folder.joinpath(*name.split(".")))]
        sys.modules[name] = package
    for name, members in _EMPTY.items():
        module = ModuleType(name)
        for member in members:
            setattr(module, member, None)
        sys.modules[name] = module
    queue = import_module("src.tasks.task_queue")
    worker = import_module("src.tasks.background_worker")
    names = ("Task", "TaskPriority", "TaskStatus", "TaskType", "TaskQueue", "create_monitoring_task")
    return SimpleNamespace(
        __name__="real",
        BackgroundWorker=worker.BackgroundWorker,
        **{name: getattr(queue, name) for name in names},
    )
