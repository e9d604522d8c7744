"""Installs a LoRA by copying it to a folder, such as ComfyUI's models/loras or a mounted share."""

from __future__ import annotations

import filecmp
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lora_foundry import paths, storage
from lora_foundry.errors import InputError
from lora_foundry.ports import PublishedFiles


class FolderPublisher:
    """Copies atomically: the metadata first, which claims the name, the LoRA last, so that a LoRA seen
    there is complete."""

    def publish(self, lora: Path, preview: Path, metadata: bytes, folder: Path, name: str) -> PublishedFiles:
        """See ports.Publisher. Raises InputError for a file of another character or of unknown origin."""
        files = PublishedFiles(
            paths.published_lora(folder, name),
            paths.published_preview(folder, name),
            paths.published_metadata(folder, name),
        )
        _refuse_anothers(files, lora, preview, json.loads(metadata)["character"])
        storage.make_folder(folder)
        with _nothing_half_made(files):
            storage.write_bytes(files.metadata, metadata)
            storage.write_aside(files.preview, lambda aside: shutil.copyfile(preview, aside))
            storage.write_aside(files.lora, lambda aside: shutil.copyfile(lora, aside))
        return files


def _refuse_anothers(files: PublishedFiles, lora: Path, preview: Path, character: str) -> None:
    """Raises InputError if the name is taken by something that this character's runs did not put there."""
    advice = "choose another name with --output-name, or move that file away."
    with storage.storage_errors(files.lora.parent):
        if not files.metadata.exists():
            for file, source in ((files.lora, lora), (files.preview, preview)):
                if file.exists() and not filecmp.cmp(file, source, shallow=False):
                    raise InputError(f"{file} is already there and was not made here; {advice}")
            return
        text = files.metadata.read_bytes()
    owner = _owner(text)
    if owner is None:
        raise InputError(f"{files.metadata} is somebody else's and does not name {character}; {advice}")
    if owner != character:
        raise InputError(f"{files.lora} belongs to the character {owner!r}; {advice}")


def _owner(metadata: bytes) -> str | None:
    """The character that a metadata file names; None for a file of another kind."""
    try:
        content = json.loads(metadata)
    except ValueError:
        return None
    owner = content.get("character") if isinstance(content, dict) else None
    return owner if isinstance(owner, str) else None


@contextmanager
def _nothing_half_made(files: PublishedFiles) -> Iterator[None]:
    """Takes back what was put beside a LoRA that could then not be copied, unless an older one stands
    there."""
    new = [] if files.lora.exists() else [file for file in files if not file.exists()]
    try:
        yield
    except BaseException:
        for file in new:
            file.unlink(missing_ok=True)
        raise
