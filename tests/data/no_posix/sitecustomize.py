"""On PYTHONPATH, this takes from every Python process what Windows does not have: process groups and sessions, and
signal handlers of the event loop. What the standard library itself needs on POSIX must stay (SIGKILL)."""

from __future__ import annotations

import asyncio
import os
import signal

for _name in ("killpg", "getpgid", "setpgid", "getpgrp", "setsid", "getsid", "fork"):
    delattr(os, _name)
for _name in ("SIGHUP", "SIGUSR1", "SIGUSR2", "SIGALRM", "SIGCHLD"):
    delattr(signal, _name)


def _refuse(self: object, *arguments: object) -> None:
    raise NotImplementedError


asyncio.SelectorEventLoop.add_signal_handler = _refuse  # type: ignore[assignment]
