"""Starting processes that can be ended with all that they started, and hearing that we are to end ourselves. The one
place that knows how systems differ in this: POSIX has process groups and signals, Windows has neither, and psutil
finds there what a process started."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import psutil

PR_SET_PDEATHSIG = 1
# What asks a program to end: kill's default, Ctrl-C and, on Windows, the one signal that a process can send another.
STOP_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGBREAK") if hasattr(signal, name)
)


def own_group() -> dict[str, Any]:
    """Arguments for `subprocess.Popen` and asyncio's like of it: a process out of reach of our terminal's Ctrl-C, whose
    whole group `kill_group` ends."""
    if sys.platform == "win32":
        return {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
    return {"start_new_session": True}


def kill_group(pid: int) -> None:
    """Ends a process that was started with `own_group`, and all that it started; it is not asked first.

    On POSIX the group may outlive its leader. Elsewhere only what a living process started can be found.
    """
    if hasattr(os, "killpg"):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)
        return
    with contextlib.suppress(psutil.NoSuchProcess):
        leader = psutil.Process(pid)
        if leader.ppid() == os.getpid():  # or the number belongs to somebody else by now
            _kill_all([*leader.children(recursive=True), leader])


def end_own_group() -> None:
    """Ends this process and all that it started, at once. It must lead a group of its own. Never returns."""
    if hasattr(os, "killpg"):
        os.killpg(os.getpgid(0), signal.SIGKILL)
    _kill_all(psutil.Process().children(recursive=True))
    os._exit(1)


def _kill_all(processes: list[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.kill()


def has_ended(pid: int) -> bool:
    """Whether a process is gone, or waits only for somebody to read its exit code."""
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def end_with(parent: int) -> None:
    """Lets this process end when its parent does, where the kernel offers it; ends it now if the parent is gone."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, 9)
    # Not the parent alone: on Windows the `python` of a virtual environment starts the real one as its child.
    if os.getppid() != parent and parent not in [each.pid for each in psutil.Process().parents()]:
        end_own_group()


def ask_to_end(process: asyncio.subprocess.Process) -> None:
    """SIGTERM, or what comes nearest to it, for a process that was started with `own_group`."""
    with contextlib.suppress(ProcessLookupError):
        if sys.platform == "win32":
            process.send_signal(signal.CTRL_BREAK_EVENT)
        else:
            process.terminate()


def when_asked_to_end(stop: Callable[[], None]) -> None:
    """Calls `stop` in the running event loop when this process is asked to end."""
    loop = asyncio.get_running_loop()
    for number in STOP_SIGNALS:
        try:
            loop.add_signal_handler(number, stop)
        except (
            AttributeError,
            NotImplementedError,
        ):  # no such method, or a loop of Windows, which has it and refuses
            signal.signal(number, lambda *_: loop.call_soon_threadsafe(stop))


def cause_of_death(code: int | None) -> str:
    """A process's exit code in words; negative ones are signals, where the system has any."""
    if code is not None and code < 0:
        with contextlib.suppress(ValueError):
            return f"signal {signal.Signals(-code).name}"
    return f"exit code {code}"
