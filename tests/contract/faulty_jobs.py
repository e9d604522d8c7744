"""Jobs that end in every way in which a child process can fail its parent. The description of the work's character is
the fault; `stage`, where it is given, is the stage of a pipeline in which it happens."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from lora_foundry.errors import DivergedError

Tell = Callable[[dict[str, Any]], None]


def run(work: dict[str, Any], tell: Tell) -> dict[str, Any]:
    """Fails as ordered, or returns its process id."""
    tell({"progress": {"stage": "train", "done": 1, "total": 2}})
    order = work["fault"] if "fault" in work else _order_of(work)
    if order:
        FAULTS[order](tell)
    return {"pid": os.getpid()}


def _order_of(work: dict[str, Any]) -> str:
    """The fault that a pipeline's description orders for this stage, as in "train killed"."""
    stage, _, fault = work["run"]["character"]["description"].partition(" ")
    return str(fault) if stage in work["stages"] and fault != "none" else ""


def _raise(error: BaseException) -> Callable[[Tell], None]:
    def fail(tell: Tell) -> None:
        raise error

    return fail


def _pipe() -> int:
    """The descriptor on which this process answers; it is the only pipe that is none of the standard streams."""
    found = [fd for fd in range(3, 256) if _is_pipe(fd)]
    assert len(found) == 1, found
    return found[0]


def _is_pipe(fd: int) -> bool:
    try:
        return stat.S_ISFIFO(os.fstat(fd).st_mode)
    except OSError:
        return False


def _say(words: bytes) -> Callable[[Tell], None]:
    def say(tell: Tell) -> None:
        os.write(_pipe(), words)
        time.sleep(600)

    return say


def _close_output(tell: Tell) -> None:
    os.close(_pipe())
    time.sleep(600)


def _leave_the_pipe_to_others(tell: Tell) -> None:
    """Dies while a process that it started, in a group of its own, still holds the pipe."""
    code = "import time; time.sleep(600)"
    subprocess.Popen([sys.executable, "-c", code], pass_fds=(_pipe(),), start_new_session=True)
    os._exit(7)


def _freeze(tell: Tell) -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def _flood(tell: Tell) -> None:
    while True:
        tell({"progress": {"stage": "train", "done": 1, "total": 2}})


FAULTS: dict[str, Callable[[Tell], None]] = {
    "known": _raise(DivergedError("The loss is NaN at step 3.")),
    "unknown": _raise(KeyError("rank")),
    "exit": _raise(SystemExit("a library said goodbye")),
    "memory": _raise(MemoryError()),
    "disk": _raise(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/full/disk")),
    "read-only": _raise(PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/locked/folder")),
    "package": _raise(ModuleNotFoundError("No module named 'antigravity'", name="antigravity")),
    "killed": lambda tell: os.kill(os.getpid(), signal.SIGKILL),
    "gone": lambda tell: os._exit(3),
    "closes": _close_output,
    "leaves": _leave_the_pipe_to_others,
    "freezes": _freeze,
    "floods": _flood,
    "rubbish": _say(b"Loading checkpoint shards: 100%\n"),
    "binary": _say(b"\xff\xfe{}\n"),
    "number": _say(b"42\n"),
    "unknown message": _say(b'{"progess": {}}\n'),
    "bad progress": lambda tell: tell({"progress": {"stage": "train", "done": "three"}}) or time.sleep(600),
    "endless line": _say(b"x" * (40 * 1024 * 1024)),
    "no json": lambda tell: tell({"progress": {"stage": "train", "done": object()}}),
    "hangs": lambda tell: time.sleep(600),
}
