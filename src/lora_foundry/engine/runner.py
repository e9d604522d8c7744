"""The child process of one attempt. It does the work, tells its progress as JSON lines, and never outlives
its worker: the kernel kills it with its parent, and without a sign of life from a worker that still holds the
task it kills itself, which also covers a worker that is stopped, cut off from the database, or on a host that
froze."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from importlib import import_module
from typing import Any

PR_SET_PDEATHSIG = 1
STAGES = "lora_foundry.engine.stage_job:run"


def main() -> None:
    """Reads a job from stdin, runs it, and writes `{"result": ...}` or `{"error": ...}` as its last line."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)  # whatever a library prints goes to the log
    job = json.loads(sys.stdin.readline())
    _die_with(job["parent"])
    threading.Thread(target=_watch, args=(float(job["patience"]),), daemon=True).start()
    tell = _teller(out)
    try:
        tell({"result": _load(job["entry"])(job["work"], tell)})
    except Exception as error:
        import traceback

        traceback.print_exc()
        permanent = getattr(error, "exit_code", 1) == 2
        known = hasattr(error, "exit_code")
        tell({"error": str(error) if known else f"{type(error).__name__}: {error}", "permanent": permanent})
    out.flush()
    os._exit(0)  # libraries' threads must not hold up the end


def _load(entry: str) -> Callable[[dict[str, Any], Callable[[dict[str, Any]], None]], Any]:
    module, _, name = entry.partition(":")
    function: Callable[[dict[str, Any], Callable[[dict[str, Any]], None]], Any]
    function = getattr(import_module(module), name)
    return function


def _teller(out: Any) -> Callable[[dict[str, Any]], None]:
    lock = threading.Lock()

    def tell(message: dict[str, Any]) -> None:
        with lock:
            out.write(json.dumps(message) + "\n")

    return tell


def _die_with(parent: int) -> None:
    """Asks the kernel to kill us with our parent; then looks whether it is already gone."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        _end()


def _watch(patience: float) -> None:
    """Ends the process group when no line has come for `patience` seconds, or when the pipe was closed."""
    last = time.monotonic()

    def listen() -> None:
        nonlocal last
        while sys.stdin.readline():
            last = time.monotonic()
        _end()

    threading.Thread(target=listen, daemon=True).start()
    while time.monotonic() - last < patience:
        time.sleep(patience / 20)
    _end()


def _end() -> None:
    os.killpg(os.getpgid(0), signal.SIGKILL)


if __name__ == "__main__":
    main()
