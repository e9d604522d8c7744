"""The child process of an attempt. It does the work, tells its progress as JSON lines, and never outlives its
worker: the kernel kills it with its parent, and without a sign of life from a worker that still holds the task it
kills itself, which also covers a worker that is stopped, cut off from the database, or on a host that froze."""

from __future__ import annotations

import ctypes
import json
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TextIO

from lora_foundry.errors import StopRequested
from lora_foundry.tasks.logs import speak_of, start_log

PR_SET_PDEATHSIG = 1
Tell = Callable[[dict[str, Any]], None]


class Orders:
    """What the worker sends down the pipe, read by a thread: jobs as JSON, `beat` as a sign of life, and `stop`."""

    def __init__(self) -> None:
        self.jobs: SimpleQueue[dict[str, Any]] = SimpleQueue()
        self.stop = threading.Event()
        self._heard, self._patience = time.monotonic(), math.inf
        for work in (self._listen, self._watch):
            threading.Thread(target=work, daemon=True).start()

    def _listen(self) -> None:
        """Ends the process group when the pipe is closed."""
        while line := sys.stdin.readline():
            self._heard = time.monotonic()
            if line.startswith("{"):
                job = json.loads(line)
                self._patience = float(job["patience"])
                self.jobs.put(job)
            elif line.startswith("stop"):
                self.stop.set()
        _end()

    def _watch(self) -> None:
        """Ends the process group when nothing was heard for as long as the patience lasts."""
        while time.monotonic() - self._heard < self._patience:
            time.sleep(min(self._patience / 20, 0.5))
        _end()


def main() -> None:
    """Runs jobs from stdin; each ends with a line `{"result": ...}` or `{"error": ...}`."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)  # whatever a library prints goes to the log
    _die_with(int(sys.argv[1]))
    orders = Orders()
    tell = _teller(out, orders.stop)
    for module in sys.argv[2:]:
        import_module(module)
    while True:
        job = orders.jobs.get()
        _log_to(job)
        out.write(json.dumps(_outcome(job, tell)) + "\n")
        out.flush()
        if not job["keep"]:
            os._exit(0)  # libraries' threads must not hold up the end


def _outcome(job: dict[str, Any], tell: Tell) -> dict[str, Any]:
    try:
        return {"result": _load(job["entry"])(job["work"], tell)}
    except StopRequested as error:
        return {"error": str(error), "kind": "StopRequested", "permanent": False}
    except Exception as error:
        import traceback

        traceback.print_exc()
        kind = type(error).__name__
        known = hasattr(error, "exit_code")
        permanent = getattr(error, "exit_code", 1) == 2
        return {"error": str(error) if known else f"{kind}: {error}", "kind": kind, "permanent": permanent}


def _log_to(job: dict[str, Any]) -> None:
    """Lets stdout and stderr go to the log of this job's task."""
    with Path(job["log"]).open("ab") as log:
        os.dup2(log.fileno(), 2)
        os.dup2(2, 1)
    speak_of(**job["context"])
    start_log(job["json_log"])


def _load(entry: str) -> Callable[[dict[str, Any], Tell], Any]:
    module, _, name = entry.partition(":")
    function: Callable[[dict[str, Any], Tell], Any] = getattr(import_module(module), name)
    return function


def _teller(out: TextIO, stop: threading.Event) -> Tell:
    """What jobs tell their progress with. It raises StopRequested, after the news, where the worker wants an end."""
    lock = threading.Lock()

    def tell(message: dict[str, Any]) -> None:
        with lock:
            out.write(json.dumps(message) + "\n")
        if stop.is_set():
            raise StopRequested("The worker is stopping; the task goes on when another takes it.")

    return tell


def _die_with(parent: int) -> None:
    """Asks the kernel to kill us with our parent; then looks whether it is already gone."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        _end()


def _end() -> None:
    os.killpg(os.getpgid(0), signal.SIGKILL)


if __name__ == "__main__":
    main()
