"""The three ways of use that the old system's documents promise, word for word, on a fresh table and on an adopted one."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from pathlib import Path

import psycopg
import pytest

from lora_foundry.compat.echo import (
    TaskPriority,
    TaskQueue,
    create_complete_lora_pipeline,
    create_lora_generation_task,
)
from lora_foundry.settings import Settings
from lora_foundry.tasks.worker import Worker, WorkerOptions
from tests.contract.conftest import database_url, postgresql_server
from tests.host import double
from tests.host.shared import ENDED, JOBS, QUICK

__all__ = ["database_url", "postgresql_server"]
POSTGRESQL = """
INSERT INTO echo_tasks (name, task_type, priority, status, payload, created_at, updated_at, timeout)
VALUES ('Generate LORA training images for MyCharacter', 'user_request', 3, 'pending',
'{"character_name": "MyCharacter", "description": "1girl, blonde hair"}'::jsonb, NOW(), NOW(), 3600);
"""
SQLITE = POSTGRESQL.replace("::jsonb", "").replace("NOW()", "CURRENT_TIMESTAMP")


def execute(url: str, statement: str) -> None:
    if url.startswith("sqlite"):
        with sqlite3.connect(url.removeprefix("sqlite:///")) as table:
            table.execute(statement)
        return
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(statement)  # type: ignore[arg-type]


@pytest.mark.parametrize("table", ["fresh", "adopted"])
def test_the_three_ways(
    table: str, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LORA_FOUNDRY_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("LORA_FOUNDRY_DATABASE_URL", database_url)
    if table == "adopted":
        deployed = double.DEPLOYED
        if database_url.startswith("sqlite"):
            deployed = deployed.replace("SERIAL PRIMARY KEY", "INTEGER PRIMARY KEY AUTOINCREMENT")
        execute(database_url, deployed)

    async def scenario() -> None:
        task_queue = TaskQueue()
        await task_queue.initialize()
        result = await create_complete_lora_pipeline(
            character_name="Elara",
            description="1girl, brown hair, blue eyes, fantasy armor, warrior",
            character_tags=["1girl", "brown hair", "blue eyes", "armor"],
            output_name="elara_warrior_lora",
            task_queue=task_queue,
        )
        ids = [result["generation_task_id"], result["tagging_task_id"], result["training_task_id"]]

        task = create_lora_generation_task(
            character_name="MyCharacter",
            description="1girl, blonde hair, red eyes",
            priority=TaskPriority.LOW,
        )
        await task_queue.add_task(task)

        execute(database_url, SQLITE if database_url.startswith("sqlite") else POSTGRESQL)
        stop = asyncio.Event()
        options = WorkerOptions(JOBS, {"gpu": 1, "cpu": 1}, QUICK)
        worker = asyncio.create_task(Worker(task_queue.store, Settings(), options).run(stop))
        end = time.monotonic() + 60
        while any(row.status not in ENDED for row in await task_queue.store.recent()):
            assert time.monotonic() < end, await task_queue.store.recent()
            await asyncio.sleep(0.1)
        stop.set()
        await worker
        rows = await task_queue.store.recent()
        assert {row.status for row in rows} == {"completed"}, rows
        assert len(rows) == 5
        pipeline = [await task_queue.store.get(uuid.upper()) for uuid in ids]
        assert [row.result["attempts"] for row in pipeline if isinstance(row.result, dict)] == [1, 2, 3]
        assert (await task_queue.store.get(task.uuid)).priority == TaskPriority.LOW
        await task_queue.close()

    asyncio.run(scenario())
