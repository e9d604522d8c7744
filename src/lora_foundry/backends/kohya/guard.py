"""Stands between us and sd-scripts' launcher, in a process group of its own. The launcher starts the training as
its child and leaves it running when it is stopped itself; and nobody signals anybody when we are killed. So this
process waits for the end of its standard input, which comes whenever we end, however that was, and takes the
whole group with it. Run by path, it needs nothing of this package."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading

import psutil


def main() -> int:
    """Runs the command given as arguments; its exit code is ours."""
    child = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    code = child.wait()
    if hasattr(os, "killpg"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.killpg(0, signal.SIGTERM)  # a launcher that was killed leaves its training behind
    else:  # Windows has no groups
        _kill_children()
    return 128 - code if code < 0 else code


def _end_with_parent() -> None:
    while os.read(0, 1):
        pass
    if hasattr(os, "killpg"):
        os.killpg(0, signal.SIGKILL)
    _kill_children()
    os._exit(1)


def _kill_children() -> None:
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            process.kill()


if __name__ == "__main__":
    sys.exit(main())
