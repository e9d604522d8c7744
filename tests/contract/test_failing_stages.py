"""A stage whose process fails ends its pipeline, for a person who waits as for a worker of many."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncConnection

from lora_foundry.domain.character import Character
from lora_foundry.domain.run import ProgressEvent
from lora_foundry.domain.task import Task, TaskType
from lora_foundry.errors import DivergedError, FoundryError, StorageError
from lora_foundry.settings import Settings
from lora_foundry.tasks import foreground, pipelines
from lora_foundry.tasks import store as store_module
from lora_foundry.tasks import worker as worker_module
from lora_foundry.tasks.foreground import Watcher
from lora_foundry.tasks.pipelines import Pipeline, PipelineRequest, StageState
from lora_foundry.tasks.recovery import Timing
from lora_foundry.tasks.store import Failure, TaskStore
from lora_foundry.tasks.worker import Worker, WorkerOptions
from tests.contract.test_children import ENTRY, SAID

pytestmark = pytest.mark.usefixtures("forked_children")

TIMING = Timing(heartbeat=0.5, patience=20, dead_after=25, poll=0.2, queue=0.1, report=0.1, grace=1)


def request(fault: str) -> PipelineRequest:
    """A pipeline in which the stage `caption`, or the one that is named before the fault, fails."""
    stage, _, named = fault.rpartition(" ")
    words = f"{stage or 'caption'} {named}"
    return PipelineRequest(character=Character(name="Elara", description=words), recipe="mini")


def failed_stage(pipeline: Pipeline) -> StageState:
    assert [stage.status for stage in pipeline.stages[:3]] == ["completed", "completed", "failed"]
    return pipeline.stages[2]


@pytest.mark.parametrize("fault", ["known", "killed"])
@pytest.mark.parametrize("waiting", [True, False], ids=["foreground", "worker"])
def test_a_stage_whose_process_fails_ends_the_pipeline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str, waiting: bool
) -> None:
    """The processes of a pipeline that somebody waits for are kept from stage to stage."""
    monkeypatch.setattr(store_module, "FIRST_PAUSE", 0.05)
    settings = Settings(home=tmp_path, device="cpu")
    options = WorkerOptions(ENTRY, {"gpu": 1, "cpu": 1}, TIMING)

    async def wait() -> Pipeline:
        store = TaskStore(settings.task_database)
        try:
            await store.upgrade()
            if waiting:
                return await foreground.create(store, settings, request(fault), options, Watcher())
            return await serve(store)
        finally:
            await store.close()

    async def serve(store: TaskStore) -> Pipeline:
        stop = asyncio.Event()
        submitted = await pipelines.submit(store, settings, request(fault))
        running = asyncio.create_task(Worker(store, settings, options).run(stop))
        while True:
            pipeline = await pipelines.get_pipeline(store, submitted.id)
            if pipeline.status == "failed":
                stop.set()
                await running
                return pipeline
            await asyncio.sleep(0.05)

    assert SAID[fault] in (failed_stage(asyncio.run(wait())).error or "")


def test_a_look_for_cancelled_rows_that_comes_late_ends_no_kept_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A completed row has no lease any more, as one that somebody took away; its process is at the next stage."""
    complete = TaskStore.complete

    async def slowly(self: TaskStore, number: int, lease: str, result: dict[str, Any]) -> bool:
        done = await complete(self, number, lease, result)
        await asyncio.sleep(0.5)
        return done

    monkeypatch.setattr(TaskStore, "complete", slowly)
    monkeypatch.setattr(worker_module, "LOOK", 0.05)
    settings = Settings(home=tmp_path, device="cpu")
    options = WorkerOptions(ENTRY, {"gpu": 1, "cpu": 1}, TIMING)

    async def create() -> list[Task]:
        store = TaskStore(settings.task_database)
        try:
            await store.upgrade()
            made = await foreground.create(store, settings, request("none"), options, Watcher())
            return [await store.get(stage.task_id) for stage in made.stages]
        finally:
            await store.close()

    rows = asyncio.run(create())
    assert [row.status for row in rows] == ["completed"] * 6
    assert len({row.result["pid"] for row in rows if isinstance(row.result, dict)}) == 1


class RefusingStore(TaskStore):
    """A store whose SQLite refuses every write from one moment on, in its own words."""

    refuses = ""

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[AsyncConnection]:
        async with super().writing() as connection:
            if self.refuses == "full":
                await connection.exec_driver_sql("PRAGMA max_page_count = 1")
                await connection.exec_driver_sql("CREATE TABLE filler AS SELECT randomblob(1000000)")
            elif self.refuses == "read-only":
                await connection.exec_driver_sql("PRAGMA query_only = ON")
            else:
                await connection.exec_driver_sql(f"PRAGMA max_page_count = {2**30}")
            yield connection


class RefusingEnds(RefusingStore):
    """From the end of the stage `caption` on: what was to be written of it is not."""

    how = ""

    async def complete(self, number: int, lease: str, result: dict[str, Any]) -> bool:
        self.refuses = self.how if number == 3 else ""
        return await super().complete(number, lease, result)

    async def fail(self, task: Task, lease: str, failure: Failure) -> str | None:
        self.refuses = self.how
        return await super().fail(task, lease, failure)


def refused(store: RefusingStore, tmp_path: Path, fault: str, watcher: Watcher) -> FoundryError:
    """What `create` raises where the store begins to refuse. It waits for no timeout: the attempts' are hours away."""
    settings = Settings(home=tmp_path, device="cpu")
    options = WorkerOptions(ENTRY, {"gpu": 1, "cpu": 1}, TIMING)

    async def create() -> None:
        try:
            await store.upgrade()
            await foreground.create(store, settings, request(fault), options, watcher)
        finally:
            await store.close()

    with pytest.raises(FoundryError) as caught:
        asyncio.run(create())
    return caught.value


@pytest.mark.parametrize("how", ["full", "read-only"])
def test_an_end_that_the_database_refuses_is_told_to_who_waits_for_it(tmp_path: Path, how: str) -> None:
    store = RefusingEnds(f"sqlite:///{tmp_path / 'tasks.db'}")
    store.how = how
    told = refused(store, tmp_path, "known", Watcher())
    assert type(told) is DivergedError
    said = {"full": "database or disk is full", "read-only": "attempt to write a readonly database"}
    assert str(told) == f"{SAID['known']} Nor could the task database be written ({said[how]})."


def test_a_result_that_the_database_refuses_is_told_as_what_the_database_lacks(tmp_path: Path) -> None:
    store = RefusingEnds(f"sqlite:///{tmp_path / 'tasks.db'}")
    store.how = "full"
    told = refused(store, tmp_path, "none", Watcher())
    assert type(told) is StorageError
    assert str(told).startswith(
        f"The disk that holds the task database {tmp_path / 'tasks.db'} is full; free"
    )


def test_a_database_that_refuses_while_a_stage_is_at_work_ends_it_at_once(tmp_path: Path) -> None:
    """The worker cannot say any more that it lives, so its child would end itself, and be taken for a lack of memory."""
    store = RefusingStore(f"sqlite:///{tmp_path / 'tasks.db'}")

    def refuse(event: ProgressEvent) -> None:
        store.refuses = "read-only"

    told = refused(store, tmp_path, "generate hangs", Watcher(progress=refuse))
    assert type(told) is StorageError
    assert "cannot be used (attempt to write a readonly database); look at the file" in str(told)


class FullForAWhile(RefusingStore):
    """From the first end on six writes of any kind are refused; then there is space again."""

    left = 6

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[AsyncConnection]:
        self.left -= bool(self.refuses)
        self.refuses = self.refuses if self.left else ""
        async with super().writing() as connection:
            yield connection

    async def complete(self, number: int, lease: str, result: dict[str, Any]) -> bool:
        self.refuses = "full" if self.left else ""
        return await super().complete(number, lease, result)


def test_a_worker_for_which_nobody_waits_writes_the_end_once_there_is_space_again(tmp_path: Path) -> None:
    store = FullForAWhile(f"sqlite:///{tmp_path / 'tasks.db'}")
    options = WorkerOptions(ENTRY, {"gpu": 1, "cpu": 1}, TIMING)

    async def scenario() -> Task:
        await store.upgrade()
        payload = {"character_name": "Elara", "description": "caption none"}
        (task,) = await store.add(Task("make", TaskType.LORA_GENERATION, payload, max_retries=0))
        stop = asyncio.Event()
        running = asyncio.create_task(Worker(store, Settings(home=tmp_path), options).run(stop))
        while (found := await store.get(task.id or 0)).status in ("pending", "retrying", "running"):
            assert not running.done(), running
            await asyncio.sleep(0.1)
        stop.set()
        await running
        await store.close()
        return found

    done = asyncio.run(scenario())
    assert (done.status, done.retries, done.resumes, store.left) == ("completed", 0, 0, 0)
