"""Tells people that a pipeline is over. The worker that settled its last row does it, so it happens whether or not a
page is open anywhere, and once: a worker that dies in that very moment leaves it undone."""

from __future__ import annotations

import asyncio
import logging

from lora_foundry.announcements import of_failure, of_finish
from lora_foundry.domain.news import News
from lora_foundry.domain.task import Task, TaskStatus
from lora_foundry.errors import FoundryError
from lora_foundry.files.paths import RunPaths
from lora_foundry.files.safe_paths import inside
from lora_foundry.files.versions import folder_of
from lora_foundry.ports import Notifier
from lora_foundry.settings import Settings
from lora_foundry.tasks.pipelines import get_pipeline
from lora_foundry.tasks.store import TaskStore

logger = logging.getLogger(__name__)
PATIENCE = 60.0


async def announce(store: TaskStore, settings: Settings, notifier: Notifier, task: Task, ended: str) -> None:
    """Sends the news that a row's end makes, if any. Whatever goes wrong is logged, and nothing else: the work is
    done and settled."""
    if task.pipeline is None or ended not in (TaskStatus.COMPLETED, TaskStatus.FAILED):
        return
    try:
        news = await _news(store, settings, task, ended)
        if news is not None:
            await asyncio.wait_for(asyncio.to_thread(notifier.notify, news), PATIENCE)
    except Exception as error:
        why = (
            str(error) if isinstance(error, FoundryError) else type(error).__name__
        )  # addresses hold secrets
        logger.warning("Not everybody was told about pipeline %s: %s", task.pipeline, why)


async def _news(store: TaskStore, settings: Settings, task: Task, ended: str) -> News | None:
    """None where the pipeline goes on."""
    pipeline = await get_pipeline(store, task.pipeline or "")
    folder = inside(settings.datasets_dir, pipeline.character, "character_name")
    folder = folder_of(folder, pipeline.version)
    paths = RunPaths(folder, pipeline.character.lower().replace(" ", "_"))
    if ended == TaskStatus.FAILED:
        state = next(each for each in pipeline.stages if each.task_id == task.id)
        return await asyncio.to_thread(of_failure, pipeline.character, state.stage, state.error or "", paths)
    if pipeline.status != TaskStatus.COMPLETED:
        return None
    return await asyncio.to_thread(of_finish, pipeline.character, paths)
