"""The files of an installed LoRA, and what becomes of an older one of the same name."""

from __future__ import annotations

import filecmp
import re
import shutil
from functools import partial
from pathlib import Path

from lora_foundry.files import paths, storage
from lora_foundry.ports import PublishedFiles


def files_of(folder: Path, name: str) -> PublishedFiles:
    return PublishedFiles(
        lora=paths.published_lora(folder, name),
        preview=paths.published_preview(folder, name),
        metadata=paths.published_metadata(folder, name),
        card=paths.published_card(folder, name),
    )


def keep_older(files: PublishedFiles, lora: Path, folder: Path, name: str) -> Path | None:
    """Copies what is about to be replaced to the name of its version, `<name>.v1.*`; its path, or None.

    The copy's LoRA comes last: where it stands, the version is whole, and a run that was killed makes no second one.
    """
    if not files.lora.exists() or filecmp.cmp(files.lora, lora, shallow=False):
        return None
    pattern = re.compile(rf"{re.escape(name)}\.v(\d+)\.safetensors")
    versions = {
        int(match.group(1)): path for path in folder.iterdir() if (match := pattern.fullmatch(path.name))
    }
    for path in versions.values():
        if filecmp.cmp(path, files.lora, shallow=False):
            return path
    copies = files_of(folder, f"{name}.v{max(versions, default=0) + 1}")
    for source, copy in (
        (files.metadata, copies.metadata),
        (files.card, copies.card),
        (files.preview, copies.preview),
        (files.lora, copies.lora),
    ):
        if source.exists():
            storage.write_aside(copy, partial(shutil.copyfile, source))
    return copies.lora
