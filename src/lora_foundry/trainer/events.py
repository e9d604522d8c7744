"""TensorBoard's event files, written by hand: scalars need forty lines, the package brings gRPC and a web server. A file
is a row of records (length, checksum, data, checksum), each a protobuf Event; see tensorflow's record_writer.cc and
event.proto for the formats."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO

from lora_foundry.files import storage

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
    """One run's scalars. Written anew from the step that a training goes on from, in a file of its own, as TensorBoard
    joins the files of a folder by step."""

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
