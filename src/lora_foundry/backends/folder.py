"""Installs a LoRA by copying it to a folder, such as ComfyUI's models/loras or a mounted share.

Beside it stand a preview and its card in the forms of ComfyUI-Lora-Manager and of A1111. An older LoRA of the same
character and name stays, under its version's name; a file of anybody else is never touched."""

from __future__ import annotations

import filecmp
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from lora_foundry.context import Context
from lora_foundry.domain.publication import LoraCard
from lora_foundry.errors import InputError
from lora_foundry.files import storage
from lora_foundry.files.installed import files_of, keep_older
from lora_foundry.ports import PublishedFiles


class FolderPublisher:
    """Copies atomically: the metadata first, which claims the name, the LoRA last, so that a LoRA seen
    there is complete."""

    @classmethod
    def make(cls, context: Context) -> Self:
        """See registry."""
        return cls()

    def publish(self, lora: Path, preview: Path, card: LoraCard, folder: Path, name: str) -> PublishedFiles:
        """See ports.Publisher. Raises InputError for a file of another character or of unknown origin."""
        files = files_of(folder, name)
        known = _refuse_anothers(files, lora, preview, card)
        storage.make_folder(folder)
        storage.remove_leftovers(folder)
        kept = keep_older(files, lora, folder, name)
        facts = lora.stat()
        metadata = card.manager_form(files.lora, files.preview, facts.st_size, facts.st_mtime)
        with _nothing_half_made(files):
            storage.write_json(files.metadata, {**known, **metadata})
            storage.write_json(files.card, {**_read(files.card), **card.a1111_form()})
            storage.write_aside(files.preview, lambda aside: shutil.copyfile(preview, aside))
            storage.write_aside(files.lora, lambda aside: shutil.copyfile(lora, aside))
        return files._replace(kept=kept)


def _refuse_anothers(files: PublishedFiles, lora: Path, preview: Path, card: LoraCard) -> dict[str, Any]:
    """The metadata that this character's runs left there, with what people have added since; {} for a free name.

    Raises InputError if the name is taken by anything else.
    """
    advice = "choose another name with --output-name, or move that file away."
    with storage.storage_errors(files.lora.parent):
        if not files.metadata.exists():
            taken = [
                file
                for file, source in ((files.lora, lora), (files.preview, preview))
                if file.exists() and not filecmp.cmp(file, source, shallow=False)
            ]
            if files.card.exists() and _read(files.card) != card.a1111_form():
                taken.append(files.card)
            if taken:
                raise InputError(f"{taken[0]} is already there and was not made here; {advice}")
            return {}
    known = _read(files.metadata)
    owner = known.get("character")
    if not isinstance(owner, str):
        raise InputError(f"{files.metadata} is somebody else's and does not name {card.character}; {advice}")
    if owner != card.character:
        raise InputError(f"{files.lora} belongs to the character {owner!r}; {advice}")
    return known


def _read(path: Path) -> dict[str, Any]:
    """A JSON object; {} where there is none, or something else."""
    with storage.storage_errors(path):
        try:
            content = json.loads(path.read_bytes())
        except (FileNotFoundError, ValueError):
            return {}
    return content if isinstance(content, dict) else {}


@contextmanager
def _nothing_half_made(files: PublishedFiles) -> Iterator[None]:
    """Takes back what was put beside a LoRA that could then not be copied, unless an older one stands
    there."""
    installed = (files.lora, files.preview, files.metadata, files.card)
    new = [] if files.lora.exists() else [file for file in installed if not file.exists()]
    try:
        yield
    except BaseException:
        for file in new:
            file.unlink(missing_ok=True)
        raise
