"""One table, two programs. Either our handlers run in the host's worker, or our worker runs beside it; in both, nothing
is lost, nothing is run by the wrong one, and rows that are not ours stay as they were to the byte."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from lora_foundry.compat import echo
from lora_foundry.compat.echo import handlers
from lora_foundry.tasks.store import TaskStore
from tests.host.shared import JOBS, Shared

pytestmark = pytest.mark.usefixtures("forked_children")
ORDER = ("generation_task_id", "tagging_task_id", "training_task_id")
TABLES = "SELECT table_name FROM information_schema.tables WHERE table_schema = 'public' ORDER BY table_name"


@pytest.fixture(autouse=True)
def jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handlers, "ENTRY", JOBS)


def past(shared: Shared) -> list[str]:
    """Rows of the host's past and of its future, which nobody takes now."""
    shared.insert("monitoring", {"target": "x"}, status="completed", result='{"data": {"ü": 1}}')
    shared.insert("learning", {"a": [1, 2.50, None]}, status="failed", error="it\nfailed", creator="somebody")
    shared.insert(
        "user_request", {"message": "draw me lora_ things"}, status="retrying", dependencies='["x"]'
    )
    shared.insert("analysis", {"character_name": 5}, scheduled_for="2099-01-01")
    return shared.image("id <= 4")


def by_uuid(rows: list[dict[str, Any]], uuid: str) -> list[dict[str, Any]]:
    return [row for row in rows if row["payload"].get("task_uuid") == uuid]


def check_pipeline(rows: list[dict[str, Any]], ids: dict[str, str]) -> list[dict[str, Any]]:
    """Each of the three ran once, here, and after the one before."""
    found = [by_uuid(rows, ids[key]) for key in ORDER]
    assert [len(each) for each in found] == [1, 1, 1], found
    three = [each[0] for each in found]
    assert [row["status"] for row in three] == ["completed"] * 3, three
    results = [row["result"].get("data", row["result"]) for row in three]
    assert [result.get("attempts") for result in results] == [1, 2, 3], (
        results
    )  # in one folder, one after another
    return three


def test_our_handlers_run_in_the_hosts_worker_children_after_parents(
    host: Any, shared: Shared, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lora_foundry.compat.echo.host_table.PUT_OFF", 1.0)
    before, columns, tables = past(shared), shared.columns(), shared.execute(TABLES)

    async def scenario() -> None:
        async with shared.host_worker(host, redis_url) as worker:
            echo.register_lora_handlers(worker, shared.settings)
            queue = worker.task_queue
            ids = await echo.create_complete_lora_pipeline("Elara", "sleep 0", "brown hair", "elara", queue)
            monitoring = host.create_monitoring_task("look", "here", "system_resources")
            assert await queue.add_task(monitoring) is True
            rows = await shared.until_ended("id > 4", seconds=90)
        three = check_pipeline(rows, ids)
        assert {row["result"]["completed_by"] for row in three} == {"echo_background_worker"}
        assert [row["status"] for row in rows if row["task_type"] == "monitoring"] == ["completed"]

    asyncio.run(scenario())
    assert shared.image("id <= 4") == before
    assert (shared.columns(), shared.execute(TABLES)) == (
        columns,
        tables,
    )  # nothing was migrated, nothing is needed


def test_in_the_hosts_worker_a_failed_parent_ends_its_children(
    host: Any, shared: Shared, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lora_foundry.compat.echo.host_table.PUT_OFF", 1.0)

    async def scenario() -> None:
        async with shared.host_worker(host) as worker:
            echo.register_lora_handlers(worker, shared.settings)
            ids = await echo.create_complete_lora_pipeline("E", "permanent", "a", "e", worker.task_queue)
            rows = await shared.until_ended("status <> 'retrying'", seconds=90)
        assert [row["status"] for row in by_uuid(rows, ids["generation_task_id"])] == ["failed"]
        assert {row["status"] for row in by_uuid(rows, ids["tagging_task_id"])} == {"cancelled"}
        assert {row["status"] for row in by_uuid(rows, ids["training_task_id"])} == {"cancelled"}
        assert "parent" in by_uuid(rows, ids["training_task_id"])[0]["error"]

    asyncio.run(scenario())


def test_our_worker_beside_the_hosts_each_does_its_own(host: Any, shared: Shared, redis_url: str) -> None:
    before, columns = past(shared), shared.columns()

    async def scenario() -> None:
        async with shared.our_worker(), shared.host_worker(host, redis_url) as worker:
            echo.leave_lora_tasks(worker)
            queue = worker.task_queue
            pipelines = [
                await echo.create_complete_lora_pipeline(name, "sleep 0.1", "a", name.lower(), queue)
                for name in ("Anna", "Bea", "Cleo")
            ]
            for number in range(6):
                await queue.add_task(
                    host.create_monitoring_task(f"look {number}", "here", "system_resources")
                )
                shared.insert("analysis", {"number": number})
            by_hand = {"character_name": "Dora", "description": "sleep 0"}
            shared.insert("user_request", by_hand)
            rows = await shared.until_ended("id > 4", seconds=120)
        for ids in pipelines:
            assert all("completed_by" not in row["result"] for row in check_pipeline(rows, ids))
        theirs = [row for row in rows if row["task_type"] in ("monitoring", "analysis")]
        assert len(theirs) == 12
        assert {row["status"] for row in theirs} == {"completed"}
        assert {row["result"]["completed_by"] for row in theirs} == {"echo_background_worker"}
        (dora,) = [row for row in rows if row["payload"].get("character_name") == "Dora"]
        assert dora["result"]["attempts"] == 1

    asyncio.run(scenario())
    assert shared.image("id <= 4") == before
    assert shared.columns() == columns


def test_the_hosts_own_tasks_go_through_our_queue(host: Any, shared: Shared) -> None:
    """Its class has no uuid, its enums are its own, and its times are local."""

    async def scenario() -> None:
        queue = echo.TaskQueue(shared.url)
        await queue.initialize()
        theirs = host.create_monitoring_task("look", "here", "system_resources")
        ours = host.create_monitoring_task("draw", "here", "system_resources")
        ours.task_type, ours.priority = host.TaskType.USER_REQUEST, host.TaskPriority.LOW
        ours.payload = {"character_name": "Elara", "description": "1girl"}
        ours.dependencies = []
        uuids = [await queue.add_task(each) for each in (theirs, ours)]
        rows = [host.Task.from_dict(row) for row in shared.rows()]
        assert [(row.name, row.task_type) for row in rows] == [
            (each.name, each.task_type) for each in (theirs, ours)
        ]
        taken = await queue.get_next_task()
        assert taken is not None
        assert (taken.uuid, taken.priority) == (uuids[1], echo.TaskPriority.LOW)
        assert await queue.update_task_status(taken.id, host.TaskStatus.COMPLETED, {"made": 1})
        assert await queue.get_next_task() is None
        assert [row["status"] for row in shared.rows()] == ["pending", "completed"]
        await queue.close()

    asyncio.run(scenario())


def test_a_pipeline_of_stages_never_stands_in_the_hosts_way(host: Any, shared: Shared) -> None:
    """What `create --detach` writes waits for our worker, none being there; the host's own work goes on."""
    from lora_foundry.domain.character import Character
    from lora_foundry.tasks.pipelines import PipelineRequest, submit

    async def scenario() -> None:
        store = TaskStore(shared.url)
        await store.upgrade()
        request = PipelineRequest(character=Character(name="Elara", description="1girl"), recipe="mini")
        await submit(store, shared.settings, request)
        async with shared.host_worker(host) as worker:
            await worker.task_queue.add_task(host.create_monitoring_task("look", "here", "system_resources"))
            await shared.until_ended("task_type = 'monitoring'")
        for row in shared.rows():
            host.Task.from_dict(row)
        assert {task.status for task in await store.recent() if task.pipeline} == {"pending"}
        await store.close()

    asyncio.run(scenario())


def test_a_host_that_hands_rows_over_while_our_worker_starts_holds_nobody_up(shared: Shared) -> None:
    """The engine's first start builds indexes and waits for every statement that runs; none may wait for it meanwhile."""

    async def upgrade_for(seconds: float) -> None:
        store = TaskStore(shared.url)
        for _ in range(int(seconds / 0.2)):
            await store.upgrade()
            await asyncio.sleep(0.2)
        await store.close()

    async def scenario() -> None:
        others = [asyncio.create_task(upgrade_for(4)) for _ in range(3)]
        async with shared.our_worker():
            shared.insert("user_request", {"character_name": "Dora", "description": "sleep 0"})
            await shared.until_ended("id > 0", seconds=60)
        await asyncio.gather(*others)

    asyncio.run(scenario())
