"""What a row that could run waits for, as people are told."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from lora_foundry.domain.character import Character
from lora_foundry.settings import Settings
from lora_foundry.tasks import arranging, foreground, pipelines
from lora_foundry.tasks.admission import take_in
from lora_foundry.tasks.foreground import Watcher
from lora_foundry.tasks.pipelines import Pipeline, PipelineRequest
from lora_foundry.tasks.recovery import heartbeat
from lora_foundry.tasks.schema import ours, tasks
from lora_foundry.tasks.store import TaskStore
from lora_foundry.tasks.waiting import waits_until
from lora_foundry.tasks.worker import WorkerOptions

HERE = f"{socket.gethostname()}-1-a"
ONE_THING = "until generate of Duo has ended: this machine does one thing at a time."
BUSY = "until generate of Duo has ended: every worker is busy."


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home")


def asked(url: str, scenario: Callable[[TaskStore], Awaitable[None]]) -> None:
    async def inner() -> None:
        store = TaskStore(url)
        try:
            await store.upgrade()
            await scenario(store)
        finally:
            await store.close()

    asyncio.run(inner())


def request(name: str, words: str = "red hair") -> PipelineRequest:
    return PipelineRequest(character=Character(name=name, description=words), recipe="mini")


async def runs(store: TaskStore, pipeline: Pipeline, position: int, worker: str) -> None:
    number = pipeline.stages[position].task_id
    async with store.writing() as connection:
        await connection.execute(tasks.update().where(tasks.c.id == number).values(status="running"))
        running = ours.update().where(ours.c.id == number)
        await connection.execute(running.values(status="running", begun=1, worker=worker, queue=None))


def test_a_row_waits_for_what_every_worker_of_its_lane_does(database_url: str, settings: Settings) -> None:
    async def scenario(store: TaskStore) -> None:
        duo, one, ada = [
            await pipelines.submit(store, settings, request(each)) for each in ("Duo", "One", "Ada")
        ]
        first = one.stages[0].task_id
        assert await waits_until(store, first) is None, "nobody is there"
        await heartbeat(store, HERE, "gpu,cpu")
        assert await waits_until(store, first) is None, "it is free"
        await runs(store, duo, 0, HERE)
        assert await waits_until(store, first) == ONE_THING
        assert await waits_until(store, first, alone=True) is None
        assert await waits_until(store, duo.stages[0].task_id) is None, "it has begun"
        assert await waits_until(store, one.stages[2].task_id) is None, "the other lane is free"
        await heartbeat(store, "elsewhere-1-b", "gpu")
        assert await waits_until(store, first) is None, "the other worker is free"
        await runs(store, ada, 0, "elsewhere-1-b")
        assert await waits_until(store, first) == BUSY

    asked(database_url, scenario)


def test_a_row_waits_for_a_run_that_has_begun_in_its_folder(database_url: str, settings: Settings) -> None:
    async def scenario(store: TaskStore) -> None:
        await heartbeat(store, HERE, "gpu,cpu")
        before = await pipelines.submit(store, settings, request("One"))
        again = await pipelines.submit(store, settings, request("One", "green hair"))
        await take_in(store)
        assert await waits_until(store, again.stages[0].task_id) is None
        await runs(store, before, 2, "somebody-1-dead")
        assert await waits_until(store, again.stages[0].task_id) is None, "it is given back in a moment"
        await runs(store, before, 2, HERE)
        said = "until the other run of One has ended: one run at a time works in a folder."
        assert await waits_until(store, again.stages[0].task_id) == said
        assert await waits_until(store, before.stages[3].task_id) is None, "it is of the same run"

    asked(database_url, scenario)


def test_a_create_that_finds_its_run_paused_says_so_once(settings: Settings) -> None:
    said: list[str] = []

    async def scenario(store: TaskStore) -> None:
        await heartbeat(store, HERE, "gpu,cpu")
        paused = await pipelines.submit(store, settings, request("One"))
        await arranging.arrange(store, paused.id, paused=True)
        watcher = Watcher(waits=lambda stage, words: said.append(f"{stage}: {words}"))
        options = WorkerOptions("nobody:nothing")
        following = asyncio.create_task(foreground.create(store, settings, request("One"), options, watcher))
        while not said:
            await asyncio.sleep(0.05)
        await asyncio.sleep(2 * foreground.ASKED)
        following.cancel()
        with pytest.raises(asyncio.CancelledError):
            await following

    asked(settings.task_database, scenario)
    assert said == ["generate: This run is paused; press Resume on the dashboard to let it go on."]
