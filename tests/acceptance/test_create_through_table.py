"""`create` goes through the task table: what is stopped or killed there goes on, and a living worker is left its work."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from lora_foundry.domain.task import Task
from lora_foundry.settings import Settings
from lora_foundry.tasks import pipelines
from lora_foundry.tasks.recovery import heartbeat
from lora_foundry.tasks.store import TaskStore
from tests.commands import Commands, Running
from tests.contract.test_store import execute
from tests.homes import ELARA, SMALL


@pytest.fixture
def start(commands: Commands) -> Callable[..., Running]:
    """Begins `create` for Elara in a home."""

    def begin(home: Path, *more: str) -> Running:
        changes = [part for setting in SMALL for part in ("--set", setting)]
        environment = {"LORA_FOUNDRY_HOME": str(home), "OMP_NUM_THREADS": "1", "COLUMNS": "500"}
        return commands.start("create", ELARA.name, "-d", ELARA.description, *changes, *more,
                              environment=environment)  # fmt: skip

    return begin


def rows(home: Path) -> list[Task]:
    async def read() -> list[Task]:
        store = TaskStore(f"sqlite:///{home / 'tasks.db'}")
        try:
            return list(reversed(await store.recent()))
        finally:
            await store.close()

    return asyncio.run(read()) if (home / "tasks.db").exists() else []


def wait(done: Callable[[], bool]) -> None:
    end = time.monotonic() + 240
    while not done():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.fixture
def at_curation(finished: Path) -> Path:
    """A home in which only the curation is missing: it takes a moment, and all that comes after it still fits."""
    (finished / "datasets" / "Elara" / "curation.json").unlink()
    asyncio.run(make_table(finished))
    return finished


async def make_table(home: Path) -> None:
    store = TaskStore(f"sqlite:///{home / 'tasks.db'}")
    await store.upgrade()
    await store.close()


def until_curation_runs(home: Path) -> None:
    table = f"sqlite:///{home / 'tasks.db'}"
    wait(
        lambda: (
            execute(table, "SELECT status FROM echo_tasks ORDER BY id")[:2] == [("completed",), ("running",)]
        )
    )


def times(home: Path) -> dict[str, int]:
    """When each picture and weight was written; the LoRA is installed again, since the home is at another place."""
    data = home / "datasets" / "Elara"
    made = [*data.rglob("elara_*.png"), *data.rglob("*.safetensors")]
    return {str(path.relative_to(home)): path.stat().st_mtime_ns for path in made}


def test_a_killed_create_is_gone_on_with_and_the_same_pipeline_is_finished(
    start: Callable[..., Running], at_curation: Path
) -> None:
    home, before = at_curation, times(at_curation)
    assert len(before) > 6
    first = start(home)
    until_curation_runs(home)
    first.kill()
    assert first.wait() == -signal.SIGKILL
    assert rows(home)[1].status == "running", "it was killed in the middle"
    second = start(home, "--json").done()
    assert second.returncode == 0, second.stderr
    assert json.loads(second.stdout)["published"]
    assert times(home) == before
    assert [task.status for task in rows(home)] == ["completed"] * 6
    retried = asyncio.run(_retry(home))
    assert retried == ["train Elara", "evaluate Elara", "publish Elara"]


async def _retry(home: Path) -> list[str]:
    store = TaskStore(f"sqlite:///{home / 'tasks.db'}")
    (pipeline,) = await pipelines.recent_pipelines(store)
    again = await pipelines.retry(store, Settings(home=home), pipeline.id, changes={"train.steps": 5})
    await store.close()
    return [task.name for task in again]


def test_ctrl_c_stops_at_once_and_leaves_nothing_for_a_worker_to_find(
    start: Callable[..., Running], at_curation: Path
) -> None:
    running = start(at_curation)
    until_curation_runs(at_curation)
    running.send_signal(signal.SIGINT)
    stopped = running.done()
    assert stopped.returncode == 130
    assert "Stopped. Run the same command again to go on from here." in stopped.stderr
    assert "Traceback" not in stopped.stderr
    assert [task.status for task in rows(at_curation)] == ["completed", *["cancelled"] * 5]


def test_a_rented_worker_does_what_waits_and_ends_by_itself(
    start: Callable[..., Running], at_curation: Path, commands: Commands
) -> None:
    """A task that waits for its time is waited for: it is somebody's wish."""
    assert start(at_curation, "--detach").done().returncode == 0
    again = start(at_curation, "--detach").done()
    assert "already, and nothing was added" in again.stdout
    assert len(rows(at_curation)) == 6
    later = asyncio.run(_put_off(at_curation))
    environment = {"LORA_FOUNDRY_HOME": str(at_curation), "OMP_NUM_THREADS": "1"}
    worker = commands.run("worker", "--until-idle", "0.1", environment=environment)
    assert worker.returncode == 0, worker.stderr
    assert "this worker ends" in worker.stderr
    assert [task.status for task in rows(at_curation)] == ["completed"] * 6
    publish = rows(at_curation)[-1]
    assert publish.completed_at is not None
    assert publish.completed_at.replace(tzinfo=UTC) > later


async def _put_off(home: Path) -> datetime:
    """Has the last task begin ten seconds from now, which is later than an idle worker would end."""
    store = TaskStore(f"sqlite:///{home / 'tasks.db'}")
    last = (await store.recent())[0]
    later = datetime.now(UTC) + timedelta(seconds=10)
    await store.close()
    execute(
        f"sqlite:///{home / 'tasks.db'}",
        f"UPDATE echo_tasks SET scheduled_for = '{later:%Y-%m-%d %H:%M:%S.%f}' WHERE id = {last.id}",
    )
    return later


def test_a_living_worker_is_left_the_work(start: Callable[..., Running], home: Path) -> None:
    async def pretend() -> None:
        store = TaskStore(f"sqlite:///{home / 'tasks.db'}")
        await store.upgrade()
        await heartbeat(store, "another", "gpu,cpu")
        await store.close()
        execute(f"sqlite:///{home / 'tasks.db'}", "UPDATE lora_foundry_executors SET beat = beat + 1000")

    asyncio.run(pretend())
    running = start(home)
    wait(lambda: len(rows(home)) == 6)
    (first, *_) = rows(home)

    async def refuse() -> None:
        store = TaskStore(f"sqlite:///{home / 'tasks.db'}")
        assert (await store.get(first.id or 0)).status == "pending"
        await pipelines.cancel(store, first.pipeline or "")
        await store.close()

    asyncio.run(refuse())
    ended = running.done()
    assert ended.returncode == 1
    assert "cancelled" in ended.stderr


def test_what_is_waited_for_is_said_once_and_that_it_begins(
    start: Callable[..., Running], home: Path, commands: Commands
) -> None:
    environment = {"LORA_FOUNDRY_HOME": str(home), "OMP_NUM_THREADS": "1", "COLUMNS": "500"}
    duo = ("create", "Duo", "-d", ELARA.description, "--recipe", "mini", "--set", "generate.images=1000")
    assert commands.run(*duo, "--detach", environment=environment).returncode == 0
    worker = commands.start("worker", environment=environment)
    running: list[Running] = []
    try:
        wait(lambda: rows(home)[0].status == "running")
        running += [start(home, "--recipe", "mini", "--json")]
        wait(lambda: len(rows(home)) == 12)
        other = commands.start(
            "create", "One", "-d", ELARA.description, "--recipe", "mini", environment=environment
        )
        running += [other]
        words = "Waiting until generate of Duo has ended: this machine does one thing at a time.\n"
        wait(lambda: words in other.stderr.read_text(encoding="utf-8") or other.returncode is not None)
        assert "begins" not in other.stderr.read_text(encoding="utf-8")
        asyncio.run(_cancel(home, 0))
        asyncio.run(_cancel(home, 6))
        wait(lambda: "begins" in other.stderr.read_text(encoding="utf-8") or other.returncode is not None)
        other.send_signal(signal.SIGINT)
        silent, told = (each.done() for each in running)
        assert told.stderr.count(words) == 1
        assert told.stderr.index(words) < told.stderr.index("generate: begins\n")
        assert told.stdout == ""
        assert json.loads(silent.stdout)
        assert "Waiting" not in silent.stdout + silent.stderr
    finally:
        for each in [*running, worker]:
            each.kill()
            each.wait()


async def _cancel(home: Path, position: int) -> None:
    store = TaskStore(f"sqlite:///{home / 'tasks.db'}")
    await pipelines.cancel(store, list(reversed(await store.recent()))[position].pipeline or "")
    await store.close()
