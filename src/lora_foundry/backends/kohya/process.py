"""Runs sd-scripts' launcher and listens to it. Both of its streams come through one pipe, which is read as they
come, so neither can fill up and block it; and whatever ends us ends all of its processes (guard.py)."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from lora_foundry.backends.kohya import guard
from lora_foundry.backends.kohya.checkout import Checkout
from lora_foundry.backends.kohya.output import Output, Step
from lora_foundry.errors import BackendError
from lora_foundry.families._shared.devices import available_cores
from lora_foundry.processes import kill_group, own_group

_CHUNK = 65_536


def command(checkout: Checkout, script: Path, precision: str, config: Path, on_cpu: bool) -> list[str]:
    """`accelerate launch` for one process, free of the answers its own questionnaire may have left."""
    return [
        str(checkout.python), "-m", "accelerate.commands.launch", "--num_processes=1", "--num_machines=1",
        "--dynamo_backend=no", f"--mixed_precision={precision}", f"--num_cpu_threads_per_process={_threads(on_cpu)}",
        *(["--cpu"] if on_cpu else []), str(script), f"--config_file={config}",
    ]  # fmt: skip


def _threads(on_cpu: bool) -> int:
    """One where a GPU computes, as sd-scripts recommends; else what this process may use itself."""
    if not on_cpu:
        return 1
    return int(os.environ.get("OMP_NUM_THREADS") or available_cores())


def run(
    words: list[str], folder: Path, environment: dict[str, str], log: Path, heard: Callable[[Step], None]
) -> tuple[int, Output]:
    """Runs `words` in `folder` to its end and returns exit code and output. `heard` is called for every finished
    step; what it raises stops the whole process group and is raised again. Raises BackendError where it cannot be
    started."""
    output = Output()
    surrounding = {**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8", **environment}
    try:
        process = subprocess.Popen(
            [sys.executable, "-I", guard.__file__, *words],
            cwd=folder,
            env=surrounding,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            **own_group(),
        )
    except OSError as error:
        raise BackendError(f"sd-scripts could not be started ({error.strerror or error}).") from error
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        with log.open("a", encoding="utf-8") as lines:
            while data := os.read(process.stdout.fileno(), _CHUNK):
                steps, said = output.feed(data)
                lines.writelines(f"{line}\n" for line in said)
                lines.flush()
                for step in steps:
                    heard(step)
            code = process.wait()
            _, said = output.feed(b"\n")
            lines.writelines(f"{line}\n" for line in said)
        return code, output
    finally:
        _end(process)
        process.stdin.close()
        process.stdout.close()


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends the whole group. It is not asked first: sd-scripts saves nothing on a signal."""
    kill_group(process.pid)
    process.wait()
