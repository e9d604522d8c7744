"""What a process has left with another program for a while (prompts in its queue, files in its folders), written down
before it is left there, so that whoever lives can take it back: the process itself at its end, the worker whose child was
killed, or the next one that starts."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any
from uuid import uuid4

from lora_foundry.errors import FoundryError, InputError
from lora_foundry.files.locks import FolderLock

logger = logging.getLogger(__name__)
_OURS = "lora_foundry."


def _folder(home: Path) -> Path:
    return home.expanduser().absolute() / "leftovers"


class Leftovers:
    """The record of one process. entry: "module:function", which is called with the facts and the notes to take all of it
    back. Nothing is written before the first note."""

    def __init__(self, home: Path, entry: str, facts: Mapping[str, Any]) -> None:
        self._record = _folder(home) / f"{uuid4().hex}.jsonl"
        self._first = json.dumps({"entry": entry, "facts": dict(facts)})
        self._lock: FolderLock | None = None
        self._file: int | None = None

    def note(self, kind: str, value: str) -> None:
        """Writes down one thing, before it is left."""
        if self._file is None:
            self._record.parent.mkdir(parents=True, exist_ok=True)
            self._lock = FolderLock(_lock_of(self._record)).__enter__()
            self._file = os.open(self._record, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            os.write(self._file, self._first.encode() + b"\n")
        os.write(self._file, json.dumps([kind, value]).encode() + b"\n")

    def settle(self) -> None:
        """All of it was taken back."""
        if self._file is not None and self._lock is not None:
            os.close(self._file)
            _remove(self._record)
            self._lock.__exit__(None, None, None)
            self._file = self._lock = None


def take_back(home: Path) -> int:
    """Takes back what processes that are no more have left; returns how many of them there were. What cannot be reached
    now is tried again by the next caller. Never raises."""
    settled = 0
    for record in sorted(_folder(home).glob("*.jsonl")):
        try:
            with FolderLock(_lock_of(record)):
                lines = record.read_text(encoding="utf-8").splitlines()
                if lines and not _called(json.loads(lines[0]), [json.loads(line) for line in lines[1:]]):
                    continue
                _remove(record)
                settled += 1
        except InputError:
            continue  # its process lives, or another one takes it back now
        except (FoundryError, OSError, ValueError, KeyError, TypeError) as error:
            logger.warning("What %s names could not be taken back: %s", record, error)
    return settled


def _called(head: Mapping[str, Any], notes: Sequence[Sequence[str]]) -> bool:
    """Whether the entry of a record took everything back."""
    module, _, name = str(head["entry"]).partition(":")
    if not module.startswith(_OURS):
        raise ValueError(f"{module} is no module of ours")
    return bool(getattr(import_module(module), name)(head["facts"], notes))


def _lock_of(record: Path) -> Path:
    return record.with_suffix(".lock")


def _remove(record: Path) -> None:
    record.unlink(missing_ok=True)
    _lock_of(record).unlink(missing_ok=True)
