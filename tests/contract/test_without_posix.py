"""Children, workers, the server, sd-scripts' process and the folder's lock without what only POSIX has. No test here
runs on Windows; what these prove is that nothing needs the names that Windows lacks."""

from __future__ import annotations

import ast
import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

import lora_foundry
from lora_foundry.backends.kohya import guard
from lora_foundry.backends.kohya.process import run as run_kohya
from lora_foundry.processes import own_group
from lora_foundry.settings import Settings
from lora_foundry.tasks.children import start_process
from lora_foundry.tasks.store import TaskStore
from tests.acceptance.test_serve import ask, started
from tests.contract.test_worker import order, until

ROOT = Path(__file__).parents[2]
SOURCE = Path(lora_foundry.__file__).parent
NO_POSIX = {
    "PYTHONPATH": os.pathsep.join([str(ROOT / "tests" / "data" / "no_posix"), str(ROOT), str(SOURCE.parent)])
}
# What starts and ends processes differently from system to system, and the only two modules that may know it.
POSIX_ONLY = {"killpg", "getpgid", "setpgid", "setsid", "fork", "start_new_session", "preexec_fn", "SIGKILL", "SIGHUP",
              "add_signal_handler", "fcntl", "flock", "prctl", "getuid", "geteuid"}  # fmt: skip
KNOWING = {"processes.py", "guard.py"}


def seconds_pass(condition: Callable[[], object]) -> None:
    """Waits until something has happened, as long as a loaded machine may take for it."""
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


def gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def pids(folder: Path) -> list[int]:
    """The process of a job that was ordered to start another, and that other, once both are there."""
    notes = [folder / "attempts", folder / "grandchild"]
    seconds_pass(lambda: all(note.exists() and note.read_text().strip() for note in notes))
    return [int(note.read_text()) for note in notes]


def test_only_two_modules_know_how_systems_differ_in_processes() -> None:
    for path in SOURCE.rglob("*.py"):
        if path.name in KNOWING:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = {getattr(node, part, None) for part in ("id", "attr", "arg", "module")}
            names |= {alias.name for alias in getattr(node, "names", []) if isinstance(alias, ast.alias)}
            assert not names & POSIX_ONLY, f"{path} uses {names & POSIX_ONLY}; see lora_foundry.processes"


def test_a_child_whose_worker_is_gone_ends_with_all_that_it_started(tmp_path: Path) -> None:
    async def leave() -> list[int]:
        process = await start_process(tmp_path / "log", NO_POSIX)
        work = {"run": {"dataset_dir": str(tmp_path), "character": {"description": "grandchild"}}}
        told = {"entry": "tests.contract.engine_jobs:run", "work": work, "patience": 60, "keep": False}
        told |= {"json_log": False, "context": {}, "log": str(tmp_path / "log"), "sent": time.monotonic()}
        assert process.stdin is not None
        process.stdin.write(json.dumps(told).encode() + b"\n")
        both = await asyncio.to_thread(pids, tmp_path)
        process.stdin.close()
        await process.wait()
        return both

    for pid in asyncio.run(leave()):
        seconds_pass(lambda pid=pid: gone(pid))


WORKER = """
import sys
from pathlib import Path
from lora_foundry.settings import Settings
from lora_foundry.tasks.recovery import Timing
from lora_foundry.tasks.service import serve
from lora_foundry.tasks.worker import WorkerOptions
timing = Timing(poll=0.2, queue=0.1, report=0.1, grace=1)
serve(sys.argv[1], Settings(home=Path(sys.argv[2])), WorkerOptions("tests.contract.engine_jobs:run", {"gpu": 2}, timing))
"""


def test_a_worker_kills_what_is_cancelled_and_hands_back_the_rest_when_it_is_asked_to_end(
    tmp_path: Path,
) -> None:
    settings = Settings(home=tmp_path)
    words = [sys.executable, "-c", WORKER, settings.task_database, str(tmp_path)]

    async def play() -> str:
        store = TaskStore(settings.task_database)
        await store.upgrade()
        worker = subprocess.Popen(words, env=os.environ | NO_POSIX)
        try:
            one, two = await store.add(order("one", "grandchild"), order("two", "grandchild"))
            first, second = [
                await asyncio.to_thread(pids, settings.datasets_dir / name) for name in ("one", "two")
            ]
            await store.cancel(one.id or 0)
            await until(store, one, "cancelled")
            assert all(gone(pid) for pid in first)
            worker.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(worker.wait, 60) == 0
            assert all(gone(pid) for pid in second)
            return str((await store.get(two.id or 0)).status)
        finally:
            worker.kill()
            worker.wait()
            await store.close()

    assert asyncio.run(play()) == "pending"


def test_a_server_ends_with_its_worker(home: Path) -> None:
    with started(home, "--with-worker", **NO_POSIX) as (process, lines):
        address = lines[-1].split()[1]
        assert ask(address, "/api/v1/health").json()["status"] == "ok"
        seconds_pass(lambda: ask(address, "/api/v1/system").json()["workers"])
        children = psutil.Process(process.pid).children(recursive=True)
        assert children
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        assert all(gone(child.pid) for child in children)


TRAINING = """
import subprocess, sys
from pathlib import Path
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
Path(sys.argv[1]).write_text(str(child.pid))
print("steps:  10%|#  | 1/10 [00:01<00:09,  1.0s/it, avr_loss=0.1]", flush=True)
child.wait()
"""


class Stop(Exception):
    """What a progress callback raises to stop a training."""


def test_sd_scripts_ends_with_all_that_it_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrapper, note = tmp_path / "guard.py", tmp_path / "pid"
    code = f"import os, runpy\ndel os.killpg, os.setsid\nrunpy.run_path({guard.__file__!r}, run_name='__main__')\n"
    wrapper.write_text(code)
    monkeypatch.setattr(guard, "__file__", str(wrapper))
    monkeypatch.delattr(os, "killpg")

    def stop(step: object) -> None:
        raise Stop

    with pytest.raises(Stop):
        run_kohya([sys.executable, "-c", TRAINING, str(note)], tmp_path, {}, tmp_path / "log", stop)
    seconds_pass(lambda: gone(int(note.read_text())))


LOCK = """
import sys
sys.modules["fcntl"] = None
from pathlib import Path
from lora_foundry.errors import InputError
from lora_foundry.files.locks import FolderLock
path = Path(sys.argv[1])
with FolderLock(path):
    try:
        FolderLock(path).__enter__()
    except InputError as error:
        print(error)
with FolderLock(path):
    print("free again")
"""


def test_a_folder_has_one_run_at_a_time(tmp_path: Path) -> None:
    words = [sys.executable, "-W", "ignore", "-c", LOCK, str(tmp_path / "lock")]
    said = subprocess.run(words, env=os.environ | NO_POSIX, capture_output=True, text=True, check=True).stdout
    assert said == f"Another run is at work in {tmp_path}; wait for it or stop it first.\nfree again\n"


ENDS_WITH = (
    "import sys; from lora_foundry.processes import end_with; end_with(int(sys.argv[1])); print('lives')"
)
BETWEEN = "import subprocess, sys; sys.exit(subprocess.run([sys.executable, '-c', *sys.argv[1:]]).returncode)"


def test_a_child_knows_its_parent_behind_the_python_of_a_virtual_environment_and_ends_without_it() -> None:
    """On Windows that python is a process of its own, which starts the real one."""
    told = [ENDS_WITH, str(os.getpid())]
    for words in ([sys.executable, "-c", *told], [sys.executable, "-c", BETWEEN, *told]):
        assert (
            subprocess.run(words, capture_output=True, text=True, check=True, **own_group()).stdout
            == "lives\n"
        )
    stranger = subprocess.Popen([sys.executable, "-c", ""])
    stranger.wait()
    orphan = [sys.executable, "-c", ENDS_WITH, str(stranger.pid)]
    done = subprocess.run(orphan, capture_output=True, text=True, check=False, **own_group())
    assert done.returncode != 0
    assert done.stdout == ""
