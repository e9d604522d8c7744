"""The one hasher: SHA-256 of files, read in pieces, so that a base model of many GB takes no memory."""

from __future__ import annotations

import hashlib
from pathlib import Path

from lora_foundry.errors import InputError


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def readable_hash(path: Path) -> str:
    """The same for a file that a person has brought. Raises InputError where it cannot be read."""
    try:
        return file_hash(path)
    except OSError as error:
        raise InputError(f"The file {path} cannot be read ({error.strerror or error}).") from error
