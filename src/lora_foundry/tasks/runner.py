"""The child process of an attempt. It does the work, tells its progress as JSON lines, and never outlives its
worker: the kernel kills it with its parent, and without a sign of life from a worker that still holds the task it
kills itself, which also covers a worker that is stopped, cut off from the database, or on a host that froze."""

from __future__ import annotations

import contextlib
import gc
import json
import math
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TextIO

from lora_foundry.errors import StopRequested
from lora_foundry.processes import end_own_group, end_with
from lora_foundry.tasks.logs import speak_of, start_log

Tell = Callable[[dict[str, Any]], None]
ALIVE_EVERY = 2.0  # seconds; see children.SILENCE
LAST_WORD = 0.5  # seconds in which the worker is told why its child ends


class Orders:
    """What the worker sends down the pipe, read by a thread: jobs as JSON, `heartbeat` as a sign of life, and `stop`. A sign
    of life is as old as it was when it was sent: one that lay in the pipe, while this process started or froze with its
    worker, tells nothing of now."""

    def __init__(self, write: Tell) -> None:
        self.jobs: SimpleQueue[dict[str, Any]] = SimpleQueue()
        self.stop = threading.Event()
        self._write = write
        self._heard, self._patience = time.monotonic(), math.inf
        for work in (self._listen, self._watch, self._say_alive):
            threading.Thread(target=work, daemon=True).start()

    def _listen(self) -> None:
        """Ends the process group when the pipe is closed, or says what nobody can read."""
        try:
            while line := sys.stdin.readline():
                if line.startswith("{"):
                    job = json.loads(line)
                    self._heard, self._patience = float(job["sent"]), float(job["patience"])
                    self.jobs.put(job)
                elif line.startswith("heartbeat"):
                    self._heard = float(line.split()[1])
                elif line.startswith("stop"):
                    self.stop.set()
        finally:
            end_own_group()

    def _watch(self) -> None:
        """Ends the process group when nothing was heard for as long as the patience lasts. A library that holds the
        interpreter keeps the other thread from hearing: it gets a moment to catch up."""
        try:
            while True:
                if self._is_unheard():
                    time.sleep(min(self._patience / 20, 0.5))
                    if self._is_unheard():
                        self._say_unheard()
                        return
                time.sleep(min(self._patience / 20, 0.5))
        finally:
            end_own_group()

    def next_job(self) -> dict[str, Any]:
        """Waits for the next job. One that has lain in the pipe for longer than its patience may be another worker's by
        now: it ends the process group."""
        job = self.jobs.get()
        if self._is_unheard():
            time.sleep(min(self._patience / 20, 0.5))  # see _watch
            if self._is_unheard():
                self._say_unheard()
                end_own_group()
        return job

    def _is_unheard(self) -> bool:
        return time.monotonic() - self._heard > self._patience

    def _say_unheard(self) -> None:
        """Tells why we end; a frozen worker's pipe may be full, and is not waited for, and so may the log's disk."""
        with contextlib.suppress(OSError):
            sys.stderr.write(f"The worker said nothing for {self._patience:g} s: this process ends itself.\n")
        telling = threading.Thread(target=self._write, args=({"unheard": True},), daemon=True)
        telling.start()
        telling.join(LAST_WORD)

    def _say_alive(self) -> None:
        """Says now and then that we are not frozen. Apart from the watch, which a full pipe must not hold up."""
        try:
            while True:
                self._write({"alive": True})
                time.sleep(ALIVE_EVERY)
        finally:
            end_own_group()


def main() -> None:
    """Runs jobs from stdin; each ends with a line `{"result": ...}` or `{"error": ...}`. Whatever else happens ends the
    process at once: libraries' threads must not hold up the end."""
    try:
        out = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
        os.dup2(2, 1)  # whatever a library prints goes to the log
        end_with(int(sys.argv[1]))
        write = _writer(out)
        orders = Orders(write)
        _preload(sys.argv[2:])
        while True:
            job = orders.next_job()
            write(_outcome(job, _teller(write, orders.stop)))
            if not job["keep"]:
                os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def _preload(modules: Sequence[str]) -> None:
    """Imports ahead, and looks for no garbage meanwhile: half a million objects come to stay, and looking through them
    again and again, then and during the jobs, takes longer than many an import. What cannot be imported is told by the
    job that needs it."""
    gc.disable()
    for module in modules:
        try:
            import_module(module)
        except Exception:
            traceback.print_exc()
    gc.freeze()
    gc.enable()


def _outcome(job: dict[str, Any], tell: Tell) -> dict[str, Any]:
    try:
        _log_to(job)
        result = _load(job["entry"])(job["work"], tell)
        return {"result": result if isinstance(result, dict) else {}}
    except (Exception, SystemExit) as error:
        # Here, since it imports more than all that a process needs to be ready for its first job.
        from lora_foundry.failures import as_ours

        if not isinstance(error, StopRequested):
            traceback.print_exc()
        ours = as_ours(error, Path(job["log"]))
        kind = type(ours).__name__
        return {"error": str(ours) or kind, "kind": kind, "permanent": not ours.retryable}


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


def _writer(out: TextIO) -> Tell:
    """Writes messages as lines, from any thread."""
    lock = threading.Lock()

    def write(message: dict[str, Any]) -> None:
        line = json.dumps(message) + "\n"
        with lock:
            out.write(line)
            out.flush()

    return write


def _teller(write: Tell, stop: threading.Event) -> Tell:
    """What jobs tell their progress with. It raises StopRequested, after the news, where the worker wants an end."""

    def tell(message: dict[str, Any]) -> None:
        write(message)
        if stop.is_set():
            raise StopRequested("The worker is stopping; the task goes on when another takes it.")

    return tell


if __name__ == "__main__":
    main()
