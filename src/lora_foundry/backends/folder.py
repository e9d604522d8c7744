"""Installs a LoRA by copying it to a folder, such as ComfyUI's models/loras or a mounted share."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from lora_foundry import paths, storage
from lora_foundry.errors import InputError
from lora_foundry.ports import PublishedFiles


class FolderPublisher:
    """Copies atomically: preview and metadata first, the LoRA last, so that a LoRA seen there is complete."""

    def publish(self, lora: Path, preview: Path, metadata: bytes, folder: Path, name: str) -> PublishedFiles:
        """See ports.Publisher. Raises InputError for a file of another character or of unknown origin."""
        files = PublishedFiles(
            paths.published_lora(folder, name),
            paths.published_preview(folder, name),
            paths.published_metadata(folder, name),
        )
        _refuse_anothers(files, json.loads(metadata)["character"])
        storage.make_folder(folder)
        storage.write_aside(files.preview, lambda aside: shutil.copyfile(preview, aside))
        storage.write_bytes(files.metadata, metadata)
        storage.write_aside(files.lora, lambda aside: shutil.copyfile(lora, aside))
        return files


def _refuse_anothers(files: PublishedFiles, character: str) -> None:
    """Raises InputError if the name is taken by something that this character's runs did not put there."""
    advice = "choose another name with --output-name, or move that file away."
    if not files.metadata.exists():
        if files.lora.exists():
            raise InputError(f"{files.lora} is already there and was not made here; {advice}")
        return
    try:
        owner = json.loads(files.metadata.read_text(encoding="utf-8")).get("character")
    except (ValueError, AttributeError, OSError):
        owner = None
    if owner != character:
        raise InputError(f"{files.lora} belongs to {owner or 'somebody else'!r}; {advice}")
