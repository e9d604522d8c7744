"""The faults of `failing_stages.py`: a trainer that trains as ours does and fails, in its third step, in the way that the
environment asks for. It is found as another package's backend, so nothing of the program is replaced."""

from __future__ import annotations

import gc
import os
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Self

import torch

from lora_foundry.context import Context
from lora_foundry.domain.lora import TrainedLora
from lora_foundry.domain.run import ProgressEvent
from lora_foundry.ports import ProgressCallback, TrainingJob
from lora_foundry.trainer.trainer import InProcessTrainer

FAULT, MOMENTS, BASE = "FAILING_STAGES_FAULT", "FAILING_STAGES_MOMENTS", "FAILING_STAGES_BASE"
STEP = 3


class FailingTrainer:
    """The in-process trainer and a fault. Each time the fault happens, its moment is added to the file MOMENTS."""

    def __init__(self, real: InProcessTrainer) -> None:
        self._real = real

    @classmethod
    def make(cls, context: Context) -> Self:
        return cls(InProcessTrainer.make(context))

    @property
    def model(self) -> str:
        return self._real.model

    def train(self, job: TrainingJob, progress: ProgressCallback) -> TrainedLora:
        at = 0 if os.environ[FAULT] == "base deleted" else STEP
        happened = False

        def look(step: int) -> None:
            nonlocal happened
            if step >= at and not happened:
                happened = True
                self._happens(job.workdir)

        def heard(event: ProgressEvent) -> None:
            progress(event)
            look(event.done)

        look(0)
        return self._real.train(job, heard)

    def _happens(self, folder: Path) -> None:
        with open(os.environ[MOMENTS], "a") as file:
            file.write(f"{time.monotonic()}\n")
        FAULTS[os.environ[FAULT]](folder)


def _not_a_number(folder: Path) -> None:
    for each in gc.get_objects():
        if type(each) in (torch.Tensor, torch.nn.Parameter) and each.requires_grad and each.is_leaf:
            each.data.fill_(float("nan"))


def _fill_the_disk(folder: Path) -> None:
    with open(folder / "filler", "wb", buffering=0) as file:
        for size in (2**20, 2**12):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                pass


def _close_the_folder(folder: Path) -> None:
    """Root may write whatever the rights are, so for root the folder is mounted over itself and read-only."""
    if os.geteuid():
        folder.chmod(0o555)
        return
    subprocess.run(["mount", "--bind", str(folder), str(folder)], check=True)
    subprocess.run(["mount", "-o", "remount,ro,bind", str(folder)], check=True)


def _import_what_is_not_there(folder: Path) -> None:
    import_module("a_package_that_nobody_has")


def _close_the_output(folder: Path) -> None:
    """Closes every pipe but the standard streams: one of them is where this process answers."""
    for number in range(3, 256):
        try:
            if os.readlink(f"/proc/self/fd/{number}").startswith("pipe:"):
                os.close(number)
        except OSError:
            pass
    time.sleep(3600)


def _raise(folder: Path) -> None:
    raise LookupError("The layer 'mid_block.7' is not in the table.")


def _allow_no_more_memory(folder: Path) -> None:
    """What is in use now and 16 MB; the training goes on and asks for more."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 16 * 2**20, resource.RLIM_INFINITY))
    torch.zeros(2**26)


FAULTS: dict[str, Callable[[Path], None]] = {
    "loss is NaN": _not_a_number,
    "disk full": _fill_the_disk,
    "disk full, task database on it": _fill_the_disk,
    "package missing": _import_what_is_not_there,
    "child killed (kill -9)": lambda folder: os.kill(os.getpid(), signal.SIGKILL),
    "child closes its output": _close_the_output,
    "base deleted": lambda folder: shutil.rmtree(os.environ[BASE]),
    "folder read-only": _close_the_folder,
    "exception": _raise,
    "out of memory": _allow_no_more_memory,
    "child frozen (kill -STOP)": lambda folder: os.kill(os.getpid(), signal.SIGSTOP),
}
