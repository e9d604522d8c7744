"""However a child process fails, its parent has an error in words at once, whether or not the process was to be kept
for another job. Job.timeout is far away in these tests: a parent that waits for it says so in its error."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import resource
import subprocess
import sys
from asyncio.base_subprocess import BaseSubprocessTransport
from pathlib import Path
from subprocess import PIPE
from time import monotonic
from typing import Any

import psutil
import pytest

from lora_foundry.errors import StorageError
from lora_foundry.processes import own_group
from lora_foundry.tasks import children, runner
from lora_foundry.tasks.children import Child, Job, Outcome
from tests.contract.faulty_jobs import FAULTS

ENTRY = "tests.contract.faulty_jobs:run"
NO_MESSAGE = "The attempt's process wrote what is no message of ours"
SAID = {
    "known": "The loss is NaN at step 3.",
    "unknown": "KeyError: 'rank'. This is a fault of the program, not of what it was asked for. Its log is ",
    "exit": "SystemExit: a library said goodbye. This is a fault of the program",
    "memory": "There was not enough memory (MemoryError). Close other programs, or ask for less",
    "disk": "The disk is full (OSError: [Errno 28] No space left on device: '/full/disk'); free some space",
    "read-only": "/locked/folder cannot be written (Permission denied); choose another folder or change its rights.",
    "package": "This stage needs the package 'antigravity'; install it with: ",
    "killed": "The attempt's process died (signal SIGKILL).",
    "gone": "The attempt's process died (exit code 3).",
    "closes": "The attempt's process ",  # the thread that says that it lives may be the first to find out, and end it
    "leaves": "The attempt's process died (exit code 7).",
    "rubbish": f"{NO_MESSAGE}: b'Loading checkpoint shards",
    "binary": NO_MESSAGE,
    "number": f"{NO_MESSAGE}: b'42",
    "unknown message": NO_MESSAGE,
    "bad progress": NO_MESSAGE,
    "endless line": NO_MESSAGE,
    "no json": "TypeError: Object of type object is not JSON serializable",
    "hangs": "The attempt took longer than its timeout of 2 s.",
}


def job(fault: str, keep: bool) -> Job:
    timeout = 2 if fault == "hangs" else 200
    return Job(ENTRY, {"fault": fault}, patience=300, timeout=timeout, keep=keep)


@pytest.mark.usefixtures("forked_children")
@pytest.mark.parametrize("keep", [False, True], ids=["not kept", "kept"])
def test_a_child_that_fails_is_an_error_of_its_parent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep: bool
) -> None:
    monkeypatch.setattr(children, "LINE_LIMIT", 1024 * 1024)

    async def fail(fault: str) -> None:
        child = Child(tmp_path / f"{fault}.log", lambda event: None)
        outcome = await child.run(job(fault, keep))
        assert outcome.result is None, fault
        assert SAID[fault] in outcome.error, fault
        assert child.process is not None
        assert child.process.returncode is not None, f"{fault}: its process is still there"
        assert not child.is_kept(job(fault, keep)), fault

    async def fail_all() -> None:
        await asyncio.gather(*(fail(fault) for fault in SAID))

    assert FAULTS.keys() == {*SAID, "freezes", "floods"}
    asyncio.run(fail_all())


@pytest.mark.usefixtures("forked_children")
def test_an_exit_code_that_comes_late_is_told_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a busy machine a process's pipe is long closed when its exit code arrives."""
    heard = BaseSubprocessTransport._process_exited

    def late(transport: Any, code: int) -> None:
        asyncio.get_running_loop().call_later(2 * children.LAST_WORDS, heard, transport, code)

    monkeypatch.setattr(BaseSubprocessTransport, "_process_exited", late)
    for fault in ("killed", "gone"):
        child = Child(tmp_path / fault, lambda event: None)
        assert SAID[fault] in asyncio.run(child.run(job(fault, keep=False))).error


@pytest.mark.usefixtures("forked_children")
def test_a_child_that_freezes_is_an_error_after_a_silence_that_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def started(event: object) -> None:
        monkeypatch.setattr(children, "SILENCE", 1.0)

    outcome = asyncio.run(Child(tmp_path / "log", started).run(job("freezes", keep=True)))
    assert outcome.error == (
        f"The attempt's process gave no sign of life for 1 s. Its log is {tmp_path / 'log'}; run the same command to go on."
    )


@pytest.mark.usefixtures("forked_children")
def test_a_child_that_hears_nothing_ends_itself_and_says_so(tmp_path: Path) -> None:
    alone = Job(ENTRY, {"fault": "hangs"}, patience=1, timeout=200)
    outcome = asyncio.run(Child(tmp_path / "log", lambda event: None).run(alone))
    assert outcome.unheard
    assert outcome.error.startswith(
        "The attempt's process ended itself: this program gave no sign of life, as on a machine that sleeps or has too much"
    )


def said_unheard(log: Path, fault: str, patience: float, age: float = 0.0, room: bool = True) -> bytes:
    """What a child says until it ends whose worker froze `age` seconds ago, having sent it a job; nobody reads it meanwhile.
    room: whether it can write files."""
    command = [sys.executable, "-m", "lora_foundry.tasks.runner", str(os.getpid())]
    order = {"entry": ENTRY, "work": {"fault": fault}, "patience": patience, "keep": False, "log": str(log)}
    order |= {"json_log": False, "context": {}, "sent": monotonic() - age}
    with subprocess.Popen(command, stdin=PIPE, stdout=PIPE, **own_group()) as child:
        if not room:
            resource.prlimit(child.pid, resource.RLIMIT_FSIZE, (0, 0))
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(json.dumps(order).encode() + b"\n")
        child.stdin.flush()
        try:
            child.wait(60)
        finally:
            child.kill()
        return child.stdout.read()


def test_a_job_that_lay_in_the_pipe_for_too_long_is_not_begun(tmp_path: Path) -> None:
    """The process was slow to start: by now another worker may have done it."""
    said = said_unheard(tmp_path / "log", "", patience=2, age=5)
    assert b'{"unheard": true}' in said
    assert b"progress" not in said


def test_a_child_whose_full_pipe_nobody_reads_ends_itself(tmp_path: Path) -> None:
    said_unheard(tmp_path / "log", "floods", patience=3)
    assert "The worker said nothing for 3 s" in (tmp_path / "log").read_text(encoding="utf-8")


def test_a_child_that_hears_nothing_says_so_though_its_log_has_no_room(tmp_path: Path) -> None:
    said = said_unheard(tmp_path / "log", "hangs", patience=1, room=False)
    assert json.loads(said.splitlines()[-1]) == {"unheard": True}
    assert (tmp_path / "log").read_bytes() == b""


@pytest.mark.usefixtures("forked_children")
def test_a_kept_child_does_the_next_job_and_one_that_failed_does_not(tmp_path: Path) -> None:
    async def three() -> list[Outcome]:
        first = Child(tmp_path / "log", lambda event: None)
        outcomes = [await first.run(job("", keep=True))]
        assert first.is_kept(job("", keep=True))
        second = Child(tmp_path / "log", lambda event: None, process=first.process)
        outcomes += [await second.run(job("unknown", keep=True))]
        third = Child(tmp_path / "log", lambda event: None, process=second.process)
        outcomes += [await third.run(job("", keep=True))]
        await third.end()
        return outcomes

    first, failed, after = asyncio.run(three())
    assert first.result
    assert "KeyError" in failed.error
    assert after.result
    assert after.result["pid"] != first.result["pid"]
    assert not psutil.pid_exists(first.result["pid"])


def test_no_garbage_is_looked_for_while_modules_are_imported_ahead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "imported_ahead.py").write_text("import gc\nlooked = gc.isenabled()\n")
    monkeypatch.syspath_prepend(tmp_path)
    runner._preload(["imported_ahead", "no_such_module"])
    assert not sys.modules["imported_ahead"].looked
    assert gc.isenabled()


def test_a_child_that_cannot_be_started_is_an_error_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    outcome = asyncio.run(Child(tmp_path / "log", lambda event: None).run(job("", keep=False)))
    assert outcome.error.startswith("No process for the attempt could be started")


def test_a_log_that_cannot_be_written_says_where(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    child = Child(tmp_path / "file" / "log", lambda event: None)
    with pytest.raises(StorageError, match=r"/file cannot be written .*; choose another folder"):
        asyncio.run(child.run(job("", keep=False)))
