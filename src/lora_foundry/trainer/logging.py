"""What a training tells: progress events, and in files loss.csv, log.txt and TensorBoard's events if wanted. The files are
appended while it runs, and cut back to the checkpoint when it goes on from one, so that each step stands in them once
however often the training was interrupted. No times are in loss.csv: equal runs leave equal files."""

from __future__ import annotations

import logging
import os
import re
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, Self

from lora_foundry.domain.run import ProgressEvent
from lora_foundry.files import storage
from lora_foundry.ports import ProgressCallback

PROGRESS_SECONDS = 0.4  # between two reports: more of them would be a flood
_HEADER = "step,loss,learning_rate\n"
_LOG_LINE = re.compile(r"\S+ \S+ \[step (\d+)\] ")
_log = logging.getLogger(__name__)


class TrainingLog:
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


class ProgressReporter:
    """Turns what a training tells into progress events, a few a second at most."""

    def __init__(self, progress: ProgressCallback, total: int) -> None:
        self._progress, self._total = progress, total
        self._last = 0.0

    def say(self, message: str) -> None:
        """A sentence, before the first step."""
        self._progress(ProgressEvent(stage="train", done=0, total=self._total, message=message))

    def counting(self, what: str) -> Callable[[int, int], None]:
        """Reports how much of the preparation `what` is done."""

        def report(done: int, count: int) -> None:
            if time.monotonic() - self._last >= PROGRESS_SECONDS:
                self._last = time.monotonic()
                self.say(f"{what}: {done} of {count}")

        return report

    def step(self, done: int, loss: float) -> None:
        """Steps that are done, and their loss."""
        self._progress(ProgressEvent(stage="train", done=done, total=self._total, loss=round(loss, 5)))


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


_POLYNOMIAL = 0x82F63B78  # CRC-32C (Castagnoli), reversed


def _table() -> tuple[int, ...]:
    rows = []
    for value in range(256):
        row = value
        for _ in range(8):
            row = (row >> 1) ^ (_POLYNOMIAL if row & 1 else 0)
        rows.append(row)
    return tuple(rows)


_TABLE = _table()


class EventFile:
    """One run's scalars for TensorBoard, written by hand: scalars need forty lines, the package brings gRPC and a web
    server. A file is a row of records (length, checksum, data, checksum), each a protobuf Event; see tensorflow's
    record_writer.cc and event.proto for the formats. Written anew from the step that a training goes on from, in a file
    of its own, as TensorBoard joins the files of a folder by step."""

    def __init__(self, folder: Path, start: int) -> None:
        storage.make_folder(folder)
        for file in folder.glob("events.out.tfevents.*"):
            if int(file.name.split(".")[3]) >= start:
                file.unlink(missing_ok=True)
        self._path = folder / f"events.out.tfevents.{start:010d}.lora-foundry"
        with storage.storage_errors(self._path):
            self._file: BinaryIO = self._path.open("wb")
        self._write(_event(0, 0.0, _field(3, 2, b"brain.Event:2")))

    def add(self, step: int, wall_time: float, scalars: dict[str, float]) -> None:
        """The values of one step; `wall_time` in seconds since 1970."""
        values = b"".join(
            _field(1, 2, _field(1, 2, tag.encode()) + _field(2, 5, struct.pack("<f", value)))
            for tag, value in scalars.items()
        )
        self._write(_event(step, wall_time, _field(5, 2, values)))

    def flush(self) -> None:
        """Hands what was written to the system."""
        with storage.storage_errors(self._path):
            self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        with storage.storage_errors(self._path):
            self._file.close()

    def _write(self, data: bytes) -> None:
        length = struct.pack("<Q", len(data))
        record = length + _checksum(length) + data + _checksum(data)
        with storage.storage_errors(self._path):
            self._file.write(record)


def _event(step: int, wall_time: float, what: bytes) -> bytes:
    return _field(1, 1, struct.pack("<d", wall_time)) + _field(2, 0, _varint(step)) + what


def _field(number: int, kind: int, data: bytes) -> bytes:
    """A protobuf field; kind 0 varint, 1 eight bytes, 2 with its length before it, 5 four bytes."""
    head = _varint(number << 3 | kind)
    return head + (_varint(len(data)) if kind == 2 else b"") + data


def _varint(value: int) -> bytes:
    parts = []
    while True:
        value, low = value >> 7, value & 0x7F
        parts.append(low | (0x80 if value else 0))
        if not value:
            return bytes(parts)


def _checksum(data: bytes) -> bytes:
    """CRC-32C, rotated and shifted as the record format has it."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _TABLE[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)
