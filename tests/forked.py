"""What the program starts, without the eight seconds that an interpreter takes to load torch and diffusers: a worker's
children, and the worker of a server, are forked from the process that would start them, where that has it all loaded.
They are processes like any other: of a group of their own, with their own pipes, environment and end; whoever kills one
kills as much. Only the start is spared, and that the program can be started is for the tests of whole runs to show."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import logging
import os
import runpy
import signal
import sys
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial, wraps
from typing import Any

OURS = ("lora_foundry", "lora_foundry.tasks.runner", "tests.contract.engine_jobs")
_start = asyncio.create_subprocess_exec


@wraps(_start)
async def _start_or_fork(*words: str, **options: Any) -> asyncio.subprocess.Process:
    if words[:2] == (sys.executable, "-m") and words[2] in OURS:
        environment = options.pop("env", None)
        options["preexec_fn"] = partial(become, words[2], words[3:], environment or dict(os.environ))
    return await _start(*words, **options)


def fork_ours() -> None:
    """From now on this process forks what it would start of the program."""
    asyncio.create_subprocess_exec = _start_or_fork


@contextmanager
def forking() -> Iterator[None]:
    """The same for a while."""
    fork_ours()
    try:
        yield
    finally:
        asyncio.create_subprocess_exec = _start


def become(module: str, arguments: Sequence[str], environment: Mapping[str, str]) -> None:
    """Turns a process that was forked, and has its pipes, into `python -m module arguments`. Never returns."""
    gc.freeze()  # nothing of the parent's is collected: it would close descriptors that are somebody else's by now
    gc.enable()
    for number in (int(name) for name in os.listdir("/proc/self/fd")):
        if number > 2:
            _close(number)  # among them the one that tells the parent that we have begun
    os.environ.clear()
    os.environ.update(environment)
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 - as long as the process
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", buffering=1, closefd=False)  # noqa: SIM115
    _forget_the_parent()
    sys.argv = [module, *arguments]
    code: Any = 1
    try:
        contextvars.Context().run(runpy.run_module, module, run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
    if isinstance(code, str):
        sys.stderr.write(f"{code}\n")
    sys.stdout.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


def _close(number: int) -> None:
    try:
        os.close(number)
    except OSError:  # the one that the folder was listed with
        return


def _forget_the_parent() -> None:
    """Signals, log and warnings as an interpreter has them at its start."""
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGALRM, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    logging.getLogger().handlers.clear()
    warnings.resetwarnings()
    warnings.simplefilter("ignore")
