"""Pictures that an agent names by their path on this machine: only below the folders that requests may name, links followed,
and taken in by the same readers as what a browser sends."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

from lora_foundry.errors import InputError
from lora_foundry.files.safe_paths import MOST_SHOWN, folders_of, is_below
from lora_foundry.files.storage import storage_errors
from lora_foundry.settings import Settings
from lora_foundry.web import references, uploads
from lora_foundry.web.submission import REFERENCES


def keep_reference(settings: Settings, path: str | None, encoded: str | None) -> str | None:
    """The name under which a picture of the character is kept, from a file or from base64; None where neither is given.
    Raises InputError."""
    if path and encoded:
        raise InputError("Give the reference as a path or as base64, not both.")
    if path:
        file = allowed(settings, path)
        with storage_errors(file):
            data = file.read_bytes()
    elif encoded:
        try:
            data = base64.b64decode(encoded, validate=True)
        except (binascii.Error, ValueError):
            raise InputError(
                "reference_base64 is no base64; send the bytes of a PNG, JPEG or WebP."
            ) from None
    else:
        return None
    if len(data) > references.MOST_UPLOAD:
        raise InputError("The reference picture is too large; it may have 20 MiB.")
    return references.keep(settings.home.expanduser() / REFERENCES, data).name


def keep_pictures(settings: Settings, paths: Sequence[str]) -> str | None:
    """The id under which copies of own pictures wait for their run, with the captions beside them; None for no path.
    Raises InputError."""
    if not paths:
        return None
    with ExitStack() as opened:
        return uploads.add(settings, None, _files(settings, paths, opened)).id


def _files(settings: Settings, paths: Sequence[str], opened: ExitStack) -> Iterator[tuple[str, BinaryIO]]:
    for given in paths:
        root = allowed(settings, given)
        for file in sorted(root.rglob("*")) if root.is_dir() else [root]:
            if file.is_file() and is_below(str(file), _folders(settings)):
                with storage_errors(file):
                    content = opened.enter_context(file.open("rb"))
                yield str(file.relative_to(root.parent)), content
                content.close()


def allowed(settings: Settings, given: str) -> Path:
    """A file or folder that requests may name. Raises InputError, with the same words whether or not it is there."""
    if not is_below(given, _folders(settings)) or not Path(given).exists():
        places = " or ".join(str(folder) for folder in _folders(settings))
        raise InputError(f"{given[:MOST_SHOWN]!r} is no file or folder in {places}; put the pictures there.")
    return Path(given).resolve()


def _folders(settings: Settings) -> tuple[Path, ...]:
    return folders_of("pictures", settings)
