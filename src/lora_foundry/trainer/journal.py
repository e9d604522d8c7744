"""loss.csv and log.txt of a training, and TensorBoard's events if wanted: appended while it runs, and cut back to the
checkpoint when it goes on from one, so that each step stands in them once however often the training was interrupted.
No times are in loss.csv: equal runs leave equal files."""

from __future__ import annotations

import logging
import os
import re
import time
from pathlib import Path
from typing import Self

from lora_foundry.files import storage
from lora_foundry.trainer.events import EventFile

_HEADER = "step,loss,learning_rate\n"
_LOG_LINE = re.compile(r"\S+ \S+ \[step (\d+)\] ")
_log = logging.getLogger(__name__)


class Journal:
    """The two files, open for appending. Steps count from 1: row n is what step n gave."""

    def __init__(self, loss_file: Path, log_file: Path, step: int, events: EventFile | None = None) -> None:
        self._loss_file, self._log_file, self._events = loss_file, log_file, events
        self.losses = _cut_losses(loss_file, step)
        _cut_log(log_file, step)
        with storage.storage_errors(loss_file):
            self._rows = loss_file.open("a", encoding="utf-8", newline="\n")
            self._lines = log_file.open("a", encoding="utf-8", newline="\n")

    def add(self, step: int, loss: float, rate: float) -> None:
        """One row of loss.csv."""
        text = f"{loss:.6g}"
        self.losses.append(float(text))
        with storage.storage_errors(self._loss_file):
            self._rows.write(f"{step},{text},{rate:.6g}\n")
        self.show(step, {"loss": loss, "learning_rate": rate})

    def show(self, step: int, scalars: dict[str, float]) -> None:
        """Values for TensorBoard, where it was asked for."""
        if self._events:
            self._events.add(step, time.time(), scalars)

    def say(self, step: int, message: str) -> None:
        """One line of log.txt, and of the program's log."""
        _log.info("step %d: %s", step, message)
        with storage.storage_errors(self._log_file):
            self._lines.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} [step {step}] {message}\n")
            self._lines.flush()

    def flush(self, to_disk: bool = False) -> None:
        """Hands the rows to the system, and to the disk itself before a checkpoint that relies on them."""
        with storage.storage_errors(self._loss_file):
            self._rows.flush()
            if self._events:
                self._events.flush()
            if to_disk:
                os.fsync(self._rows.fileno())

    def mean_loss(self, count: int) -> float:
        """The mean of the last `count` losses, 0 where there are none."""
        last = self.losses[-count:]
        return sum(last) / len(last) if last else 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes both files."""
        with storage.storage_errors(self._loss_file):
            self._rows.close()
            self._lines.close()
            if self._events:
                self._events.close()


def _cut_losses(path: Path, step: int) -> list[float]:
    """Rewrites loss.csv up to `step` and returns its losses."""
    rows: dict[int, str] = {}
    for line in _lines(path):
        parts = line.split(",")
        if len(parts) == 3 and parts[0].isdigit() and 1 <= int(parts[0]) <= step:
            rows[int(parts[0])] = line
    kept = [rows[number] for number in sorted(rows)]
    storage.write_text(path, _HEADER + "".join(f"{row}\n" for row in kept))
    return [float(row.split(",")[1]) for row in kept]


def _cut_log(path: Path, step: int) -> None:
    """Rewrites log.txt without the lines of steps after `step`; a run from the start begins it anew."""
    kept = []
    for line in _lines(path):
        found = _LOG_LINE.match(line)
        if step and found and int(found[1]) <= step:
            kept.append(line)
    storage.write_text(path, "".join(f"{line}\n" for line in kept))


def _lines(path: Path) -> list[str]:
    """Whole lines only: what a kill left of the last one is dropped."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]
    except FileNotFoundError:
        return []
