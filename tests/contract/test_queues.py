"""What DBOS does for us and what happens where a worker dies between its tables and ours, on SQLite and on PostgreSQL."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from dbos import DBOS
from dbos import _queue as dbos_queue
from dbos._sys_db import WorkflowStatusInternal
from sqlalchemy.exc import OperationalError

from lora_foundry.domain.task import Task
from lora_foundry.settings import Settings
from lora_foundry.tasks import admission
from lora_foundry.tasks.attempts import give_back_stranded
from lora_foundry.tasks.queues import Engine, queue_of
from lora_foundry.tasks.recovery import bury, heartbeat
from lora_foundry.tasks.store import Failure, TaskStore
from lora_foundry.tasks.worker import Worker
from tests.commands import start_code
from tests.contract.taking import admit, queues
from tests.contract.test_store import ALL, execute, generation, one, opened, run
from tests.contract.test_worker import attempts, order, until, work

pytestmark = pytest.mark.usefixtures("forked_children")

KILLED = """
import os
from pathlib import Path
from lora_foundry.settings import Settings
from lora_foundry.tasks import queues, worker
from lora_foundry.tasks.service import serve
from lora_foundry.tasks.worker import WorkerOptions
from tests.contract.test_worker import JOBS, QUICK

async def die(*arguments):
    if arguments[-1] != []:  # nothing to queue
        os.kill(os.getpid(), 9)

{place} = die
serve({url!r}, Settings(home=Path({home!r})), WorkerOptions(JOBS, {{"gpu": 1}}, QUICK))
"""


def killed_at(place: str, url: str, settings: Settings) -> None:
    code = KILLED.format(place=place, url=url, home=str(settings.home))
    running = start_code(code, settings.home.parent / "killed")
    assert running.wait() == -9, "it was to be killed"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home")


async def added(url: str) -> Task:
    """A task that waits in the tables, and no worker that knows of it."""
    async with opened(url) as store:
        (task,) = await store.add(order("first", "sleep 0", max_retries=0))
        return task


@pytest.mark.parametrize("place", ["queues.Engine.put", "worker.claim"])
def test_a_worker_killed_between_the_tables_and_the_engine_loses_nothing(
    place: str, database_url: str, settings: Settings
) -> None:
    """Before the attempt is queued, and after it was taken out of the queue."""

    task = asyncio.run(added(database_url))
    killed_at(place, database_url, settings)
    (left,) = execute(database_url, "SELECT status, lease FROM lora_foundry_tasks")
    together = "postgresql" in database_url and place == "queues.Engine.put"
    assert left[0] == "pending"
    assert (left[1] is None) == together, "one transaction holds both on PostgreSQL"

    async def scenario(store: TaskStore, worker: Worker) -> None:
        done = await until(store, task, "completed", "failed")
        assert (done.status, done.retries, done.resumes) == ("completed", 0, 0)
        assert attempts(settings, "first") == 1

    work(database_url, settings, scenario)


def test_what_an_unknown_worker_took_out_of_a_queue_and_never_began_is_given_back(
    database_url: str, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that froze, was forgotten, woke, took an attempt and died before it was known again."""
    monkeypatch.setattr(admission, "STRANDED", 0.5)

    task = asyncio.run(added(database_url))
    killed_at("worker.claim", database_url, settings)
    execute(database_url, "DELETE FROM lora_foundry_executors")

    async def scenario(store: TaskStore, worker: Worker) -> None:
        done = await until(store, task, "completed", "failed")
        assert (done.status, done.retries, attempts(settings, "first")) == ("completed", 0, 1)

    work(database_url, settings, scenario)


def test_what_a_living_worker_took_out_of_a_queue_and_could_not_begin_is_given_back(
    database_url: str, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The database went away when DBOS had taken the attempt and not read it: it says so in its log and lets it lie."""
    monkeypatch.setattr(
        admission, "STRANDED", 3.0
    )  # longer than a busy machine takes to begin what is taken out
    begin, taken = dbos_queue.execute_dequeued_workflow, list[str]()

    def fails_once(dbos: DBOS, status: WorkflowStatusInternal, owner: str) -> object:
        taken.append(status["workflow_uuid"])
        if len(taken) == 1:
            raise OperationalError("SELECT", None, Exception("the server closed the connection"))
        return begin(dbos, status, owner)

    monkeypatch.setattr(dbos_queue, "execute_dequeued_workflow", fails_once)

    async def scenario(store: TaskStore, worker: Worker) -> None:
        (task,) = await store.add(order("first", "sleep 0", max_retries=0))
        done = await until(store, task, "completed", "failed")
        assert (done.status, done.retries, attempts(settings, "first")) == ("completed", 0, 1)
        assert len(set(taken)) == 2, "a second attempt, under a lease of its own"

    work(database_url, settings, scenario)


def test_an_attempt_taken_just_now_is_not_given_back(database_url: str) -> None:
    async def scenario(store: TaskStore) -> None:
        await store.add(generation())
        await admission.admit(store, queues())
        entry = queues().next(queue_of("gpu"), "w")
        assert entry is not None
        first = await give_back_stranded(store, queues())
        assert first == {entry.lease}
        assert (await store.get(entry.task_id)).lease == entry.lease, "the worker may be about to begin"
        assert await give_back_stranded(store, queues(), first) == frozenset()
        assert (await store.get(entry.task_id)).lease is None

    run(database_url, scenario)


def test_what_was_cancelled_in_the_queue_holds_up_nobody_and_leaves_it(
    database_url: str, settings: Settings
) -> None:
    async def scenario(store: TaskStore, worker: Worker) -> None:
        (busy,) = await store.add(order("busy", "sleep 3", priority=1))
        await until(store, busy, "running")
        waiting = await store.add(*(order(f"w{number}", "sleep 0") for number in range(20)))
        while None in {lease for (lease,) in execute(database_url, "SELECT lease FROM lora_foundry_tasks")}:
            await asyncio.sleep(0.05)
        leases = [each for (each,) in execute(database_url, "SELECT lease FROM lora_foundry_tasks")]
        await store.cancel(*(task.id or 0 for task in waiting))
        (last,) = await store.add(order("last", "sleep 0", priority=5))
        await until(store, last, "completed")
        while execute(database_url, "SELECT * FROM lora_foundry_dropped"):
            await asyncio.sleep(0.05)
        engine = Engine(store.url)
        assert await engine.live(leases) == set()
        engine.close()
        assert {path.name for path in settings.datasets_dir.iterdir()} == {"busy", "last"}

    work(database_url, settings, scenario)


def test_an_attempt_that_nobody_asked_to_cancel_is_tried_again(database_url: str, settings: Settings) -> None:
    async def scenario(store: TaskStore, worker: Worker) -> None:
        (task,) = await store.add(order("busy", "sleep 4", max_retries=0))
        lease = (await until(store, task, "running")).lease or ""
        engine = Engine(store.url)
        await engine.cancel([lease])
        while (await store.get(task.id or 0)).lease == lease:
            await asyncio.sleep(0.05)
        done = await until(store, task, "completed", "cancelled", "failed")
        engine.close()
        assert (done.status, done.retries) == ("completed", 0)

    work(database_url, settings, scenario)


def test_a_worker_that_froze_and_wakes_finds_its_attempt_as_it_was(database_url: str) -> None:
    """Silent for too long, and its row not given back yet: what others do with its queue must not end the attempt."""

    async def scenario(store: TaskStore) -> None:
        await heartbeat(store, "frozen", "gpu")
        await store.add(generation())
        (held,) = await admit(store, "frozen", {"gpu": 1})
        execute(database_url, "UPDATE lora_foundry_executors SET beat = 0")
        await bury(store, queues(), 60)
        assert await queues().live([held.lease]) == {held.lease}
        assert await store.complete(held.task.id or 0, held.lease, {})
        await bury(store, queues(), 60)
        assert await queues().live([held.lease]) == set()

    run(database_url, scenario)


def test_what_the_engine_keeps_is_json(database_url: str, settings: Settings) -> None:
    """Its default is pickle, and whoever can write to the database could then run code in every worker."""

    async def scenario(store: TaskStore, worker: Worker) -> None:
        (task,) = await store.add(order("done", "sleep 0"))
        await until(store, task, "completed")

    work(database_url, settings, scenario)
    engine_url = database_url if "postgresql" in database_url else f"{database_url}.engine"
    schema = "dbos." if "postgresql" in database_url else ""
    status = f"SELECT DISTINCT serialization FROM {schema}workflow_status WHERE name = 'attempt'"
    assert execute(engine_url, status) == [("portable_json",)]
    (kept,) = execute(engine_url, f"SELECT inputs FROM {schema}workflow_input")
    assert json.loads(kept[0])["positionalArgs"][0] == 1


def test_a_priority_or_a_time_changed_by_hand_counts_for_what_is_queued(database_url: str) -> None:
    async def scenario(store: TaskStore) -> None:
        rows = await store.add(*(generation(name) for name in "abc"))
        await admit(store, "w", {})
        assert len(queues().entries) == 3
        execute(
            database_url,
            f"UPDATE echo_tasks SET priority = 1 WHERE id = {rows[2].id}",
            f"UPDATE echo_tasks SET scheduled_for = '2999-01-01 00:00:00' WHERE id = {rows[0].id}",
        )
        names = [each.task.name for each in await admit(store, "w", ALL)]
        assert names == ["c", "b"]
        assert len(execute(database_url, "SELECT * FROM lora_foundry_dropped")) == 2

    run(database_url, scenario)


def test_a_waiting_task_is_given_another_priority(database_url: str) -> None:
    async def scenario(store: TaskStore) -> None:
        rows = await store.add(*(generation(name) for name in "abc"))
        (held,) = await admit(store, "w", {"gpu": 1})
        assert held.task.name == "a"
        await store.arrange([row.id or 0 for row in rows if row.name != "b"], priority=1)
        assert [each.task.name for each in await admit(store, "w", ALL)] == ["c", "b"]
        shown = {row.name: row.priority for row in await store.recent()}
        assert shown == {"a": 3, "b": 3, "c": 1}, "what runs is left as it is"

    run(database_url, scenario)


def test_the_pause_before_a_retry_is_the_queues(database_url: str) -> None:
    async def scenario(store: TaskStore) -> None:
        await store.add(generation())
        held = await one(store)
        await store.fail(held.task, held.lease, Failure("oops"))
        assert await admit(store, "w", ALL) == []
        (entry,) = queues().entries
        assert 0 < entry.delay <= 2.5
        queues().entries = [entry._replace(delay=0)]
        assert (await one(store)).task.retries == 1

    run(database_url, scenario)


def test_what_was_queued_for_one_that_died_alone_goes_to_others(database_url: str) -> None:
    """A `create` that was killed had its rows in a queue of its own, and one of them taken out of it."""

    async def scenario(store: TaskStore) -> None:
        await heartbeat(store, "alone", "")
        await store.add(generation("1", pipeline="p"), generation("2", pipeline="p"), generation("3"))
        assert await admit(store, "alone", {}, "p") == []
        assert {entry.queue for entry in queues().entries} == {"lora-foundry-alone"}
        assert queues().next("lora-foundry-alone", "alone") is not None
        assert [each.task.name for each in await admit(store, "w", ALL)] == ["3"]
        execute(database_url, "UPDATE lora_foundry_executors SET beat = 0")
        await bury(store, queues(), 60)
        assert execute(database_url, "SELECT id FROM lora_foundry_executors") == []
        assert [each.task.name for each in await admit(store, "w", ALL)] == ["1", "2"]

    run(database_url, scenario)


def test_an_attempt_that_the_engine_forgot_is_queued_again(database_url: str) -> None:
    async def scenario(store: TaskStore) -> None:
        await store.add(generation())
        await admit(store, "w", {})
        queues().entries.clear()  # its tables were lost, or written after ours
        assert (await one(store)).task.name == "make"

    run(database_url, scenario)
