"""Nothing is left with a server by a run that ends, however it ends: no prompt in its queue, no LoRA in its folder, and
what other people have there stays."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from lora_foundry.backends.comfyui.address import address_of
from lora_foundry.backends.comfyui.leftovers import LENT, PROMPT, leftovers_of
from lora_foundry.domain.task import Task, TaskType
from lora_foundry.errors import InputError
from lora_foundry.files import leftovers
from lora_foundry.files.leftovers import Leftovers, take_back
from lora_foundry.files.locks import FolderLock
from lora_foundry.settings import Settings
from lora_foundry.tasks.recovery import Timing
from lora_foundry.tasks.store import TaskStore
from lora_foundry.tasks.worker import Worker, WorkerOptions
from lora_foundry.testing.comfyui_stub import StubServer
from tests.commands import Commands, start_code
from tests.contract.comfyui_fixtures import CHECKPOINT, sd15
from tests.contract.test_comfyui_generator import lora_file

pytestmark = pytest.mark.usefixtures("forked_children")

OTHERS = "somebody-else-s"
JOBS = "tests.contract.comfyui_jobs:run"
QUICK_TIMING = Timing(heartbeat=0.5, patience=4, dead_after=5, poll=1, queue=0.1, report=0.1, grace=0.2)


@pytest.fixture
def stub(tmp_path: Path) -> Iterator[StubServer]:
    """A server that makes two pictures and then hangs, with a prompt of somebody else's at the end of its queue."""
    (tmp_path / "loras").mkdir()
    with StubServer((CHECKPOINT,), tmp_path / "loras") as server:
        server.misbehave("none", "none", "hang")
        yield server


def waiting(stub: StubServer) -> list[str]:
    queue = stub.get("/queue")
    return [row[1] for row in (*queue["queue_running"], *queue["queue_pending"])]


def lent(folder: Path) -> list[Path]:
    return list((folder / "loras").glob("lora_foundry_tmp_*"))


def until(condition: Callable[[], bool], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_what_a_killed_process_left_is_taken_back_by_whoever_lives(
    stub: StubServer, tmp_path: Path, commands: Commands
) -> None:
    lora = lora_file(tmp_path).path
    paths = [str(path) for path in (tmp_path / "home", tmp_path / "loras", lora)]
    jobs = str(Path(__file__).with_name("comfyui_jobs.py"))
    process = commands.start(jobs, stub.url, *paths, environment={})
    try:
        until(lambda: len(waiting(stub)) == 4)
        stub.post_prompt({"prompt": sd15(), "prompt_id": OTHERS})
        assert take_back(tmp_path / "home") == 0, "it lives"
        assert len(waiting(stub)) == 5
    finally:
        process.kill()
        process.wait()
    assert lent(tmp_path)
    assert take_back(tmp_path / "home") == 1
    until(lambda: set(waiting(stub)) <= {OTHERS})
    assert not lent(tmp_path)
    assert not list((tmp_path / "home" / "leftovers").iterdir())


@pytest.mark.parametrize("end", ["cancelled", "timed out", "worker stopped"])
def test_a_worker_takes_back_what_its_child_left(end: str, stub: StubServer, tmp_path: Path) -> None:
    settings = Settings(home=tmp_path / "home")
    lora = lora_file(tmp_path).path
    words = f"{stub.url} {settings.home} {tmp_path / 'loras'} {lora}"

    async def scenario(store: TaskStore) -> None:
        payload = {"character_name": "a", "description": words}
        timeout = 6 if end == "timed out" else 300
        task = Task(
            name="a", task_type=TaskType.LORA_GENERATION, payload=payload, timeout=timeout, max_retries=0
        )
        (row,) = await store.add(task)
        await _until(lambda: len(waiting(stub)) == 4)
        stub.post_prompt({"prompt": sd15(), "prompt_id": OTHERS})
        if end == "cancelled":
            await store.cancel(row.id or 0)
        if end != "worker stopped":
            await _until(lambda: not lent(tmp_path))

    async def work() -> None:
        store = TaskStore(settings.task_database)
        settings.home.mkdir()
        await store.upgrade()
        options = WorkerOptions(JOBS, {"gpu": 1, "cpu": 1}, QUICK_TIMING)
        stop = asyncio.Event()
        running = asyncio.create_task(Worker(store, settings, options).run(stop))
        try:
            await scenario(store)
        finally:
            stop.set()
            await running
            await store.close()

    asyncio.run(work())
    until(lambda: set(waiting(stub)) <= {OTHERS})
    assert not lent(tmp_path)


WORKER = """
from lora_foundry.settings import Settings
from lora_foundry.tasks.service import serve
from lora_foundry.tasks.worker import WorkerOptions
from tests.contract.test_comfyui_leftovers import JOBS, QUICK_TIMING
serve({url!r}, Settings(home={home!r}), WorkerOptions(JOBS, {{"gpu": 1, "cpu": 1}}, QUICK_TIMING))
"""


def test_the_next_worker_takes_back_what_a_killed_one_left(stub: StubServer, tmp_path: Path) -> None:
    """SIGKILL of the worker itself: nobody of its run lives on, and only what was written down tells of its prompts."""
    settings = Settings(home=tmp_path / "home")
    settings.home.mkdir()
    words = f"{stub.url} {settings.home} {tmp_path / 'loras'} {lora_file(tmp_path).path}"

    async def scenario() -> None:
        store = TaskStore(settings.task_database)
        await store.upgrade()
        payload = {"character_name": "a", "description": words}
        (row,) = await store.add(Task(name="a", task_type=TaskType.LORA_GENERATION, payload=payload))
        code = WORKER.format(url=settings.task_database, home=str(settings.home))
        first = start_code(code, tmp_path / "first")
        try:
            await _until(lambda: len(waiting(stub)) == 4)
        finally:
            first.kill()
            first.wait()
        stub.post_prompt({"prompt": sd15(), "prompt_id": OTHERS})
        assert lent(tmp_path)
        await store.cancel(row.id or 0)  # so that the next worker begins none of its own
        await _until(lambda: not _lives(settings.home))
        stop = asyncio.Event()
        second = Worker(store, settings, WorkerOptions(JOBS, {"gpu": 1, "cpu": 1}, QUICK_TIMING))
        running = asyncio.create_task(second.run(stop))
        try:
            await _until(lambda: not lent(tmp_path) and set(waiting(stub)) <= {OTHERS})
        finally:
            stop.set()
            await running
            await store.close()

    asyncio.run(scenario())
    assert not list((settings.home / "leftovers").iterdir())


def _lives(home: Path) -> bool:
    """Whether the process that wrote the record is still there: a child ends itself when its worker is gone."""
    (record,) = (home / "leftovers").glob("*.jsonl")
    try:
        with FolderLock(record.with_suffix(".lock")):
            return False
    except InputError:
        return True


def test_what_a_busy_server_does_not_answer_is_taken_back_later(
    stub: StubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that loads a model answers nobody for a while, but what waits in its queue will be drawn."""
    record = leftovers_of(tmp_path, address_of(stub.url))
    record.note(PROMPT, OTHERS)
    assert record._lock is not None
    record._lock.__exit__(None, None, None)  # as when its process dies
    for prompt in ("first", "second", OTHERS):  # the third one hangs
        stub.post_prompt({"prompt": sd15(), "prompt_id": prompt})

    def busy(*rest: object, **named: object) -> None:
        raise httpx.ReadTimeout("busy")

    with monkeypatch.context() as patch:
        patch.setattr(httpx.AsyncClient, "post", busy)
        assert take_back(tmp_path) == 0
    until(lambda: waiting(stub) == [OTHERS])
    assert take_back(tmp_path) == 1
    until(lambda: not waiting(stub))


def test_a_server_that_is_gone_has_no_queue_any_more(tmp_path: Path) -> None:
    record = leftovers_of(tmp_path, address_of("http://127.0.0.1:9"))
    record.note(PROMPT, "1")
    assert record._lock is not None
    record._lock.__exit__(None, None, None)
    assert take_back(tmp_path) == 1


async def _until(condition: Callable[[], bool], seconds: float = 40) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        await asyncio.sleep(0.05)


def test_a_record_holds_no_password_and_names_no_file_but_lent_ones(stub: StubServer, tmp_path: Path) -> None:
    precious = tmp_path / "loras" / "precious.safetensors"
    precious.touch()
    record = leftovers_of(tmp_path, address_of(stub.url.replace("://", "://me:secret@")))
    record.note(PROMPT, "1")
    record.note(LENT, str(precious))
    (path,) = (tmp_path / "leftovers").glob("*.jsonl")
    assert "secret" not in path.read_text()
    assert path.stat().st_mode & 0o077 == 0
    assert record._lock is not None
    record._lock.__exit__(None, None, None)  # as when its process dies
    assert take_back(tmp_path) == 1
    assert precious.exists()


def test_a_record_of_another_program_or_a_damaged_one_is_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "leftovers"
    folder.mkdir()
    (folder / "a.jsonl").write_text('{"entry": "os:system", "facts": {}}\n["x", "y"]\n')
    (folder / "b.jsonl").write_text("{")
    assert take_back(tmp_path) == 0
    assert len(list(folder.glob("*.jsonl"))) == 2


def test_what_was_taken_back_by_its_own_process_leaves_no_record(tmp_path: Path) -> None:
    record = Leftovers(tmp_path, "lora_foundry.none:none", {})
    assert not (tmp_path / "leftovers").exists()
    record.note("x", "y")
    record.settle()
    record.settle()
    assert not list(leftovers._folder(tmp_path).iterdir())
