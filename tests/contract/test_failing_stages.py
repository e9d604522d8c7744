"""A stage whose process fails ends its pipeline, for a person who waits as for a worker of many."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from lora_foundry.domain.character import Character
from lora_foundry.domain.task import Task
from lora_foundry.settings import Settings
from lora_foundry.tasks import foreground, pipelines
from lora_foundry.tasks import ledger as ledger_module
from lora_foundry.tasks import worker as worker_module
from lora_foundry.tasks.foreground import Watcher
from lora_foundry.tasks.ledger import Ledger
from lora_foundry.tasks.pipelines import Pipeline, PipelineRequest, StageState
from lora_foundry.tasks.recovery import Timing
from lora_foundry.tasks.worker import Worker, WorkerOptions
from tests.contract.test_children import ENTRY, SAID

TIMING = Timing(beat=0.5, patience=20, dead_after=25, poll=0.2, report=0.1, grace=1)


def request(fault: str) -> PipelineRequest:
    return PipelineRequest(character=Character(name="Elara", description=f"caption {fault}"), recipe="mini")


def failed_stage(pipeline: Pipeline) -> StageState:
    assert [stage.status for stage in pipeline.stages[:3]] == ["completed", "completed", "failed"]
    return pipeline.stages[2]


@pytest.mark.parametrize("fault", ["known", "killed"])
@pytest.mark.parametrize("waiting", [True, False], ids=["foreground", "worker"])
def test_a_stage_whose_process_fails_ends_the_pipeline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str, waiting: bool
) -> None:
    """The processes of a pipeline that somebody waits for are kept from stage to stage."""
    monkeypatch.setattr(ledger_module, "FIRST_PAUSE", 0.05)
    settings = Settings(home=tmp_path, device="cpu")
    options = WorkerOptions(ENTRY, {"gpu": 1, "cpu": 1}, TIMING)

    async def wait() -> Pipeline:
        ledger = Ledger(settings.task_database)
        try:
            await ledger.upgrade()
            if waiting:
                return await foreground.create(ledger, settings, request(fault), options, Watcher())
            return await serve(ledger)
        finally:
            await ledger.close()

    async def serve(ledger: Ledger) -> Pipeline:
        stop = asyncio.Event()
        submitted = await pipelines.submit(ledger, settings, request(fault))
        running = asyncio.create_task(Worker(ledger, settings, options).run(stop))
        while True:
            pipeline = await pipelines.get_pipeline(ledger, submitted.id)
            if pipeline.status == "failed":
                stop.set()
                await running
                return pipeline
            await asyncio.sleep(0.05)

    assert SAID[fault] in (failed_stage(asyncio.run(wait())).error or "")


def test_a_look_for_cancelled_rows_that_comes_late_ends_no_kept_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A completed row has no ticket any more, as one that somebody took away; its process is at the next stage."""
    complete = Ledger.complete

    async def slowly(self: Ledger, number: int, ticket: str, result: dict[str, Any]) -> bool:
        done = await complete(self, number, ticket, result)
        await asyncio.sleep(0.5)
        return done

    monkeypatch.setattr(Ledger, "complete", slowly)
    monkeypatch.setattr(worker_module, "LOOK", 0.05)
    settings = Settings(home=tmp_path, device="cpu")
    options = WorkerOptions(ENTRY, {"gpu": 1, "cpu": 1}, TIMING)

    async def create() -> list[Task]:
        ledger = Ledger(settings.task_database)
        try:
            await ledger.upgrade()
            made = await foreground.create(ledger, settings, request("none"), options, Watcher())
            return [await ledger.get(stage.task_id) for stage in made.stages]
        finally:
            await ledger.close()

    rows = asyncio.run(create())
    assert [row.status for row in rows] == ["completed"] * 6
    assert len({row.result["pid"] for row in rows if isinstance(row.result, dict)}) == 1
