"""A training set as one zip file, in the layout that sd-scripts and the trainers beside it read: 1_elara/x.png with x.txt
beside it, masks/x.png. The number before the trigger is how often a picture is shown in an epoch."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from lora_foundry.errors import InputError
from lora_foundry.files.paths import RunPaths
from lora_foundry.files.sidecars import read_caption
from lora_foundry.files.storage import storage_errors
from lora_foundry.files.training_set import SetPicture, read_set


def write_archive(file: Path, sets: Sequence[tuple[RunPaths, str]]) -> None:
    """Writes the set as it is trained on into `file`, or a cast's sets, each with its trigger word. Pictures are packed
    already and are stored as they are.

    Raises InputError where there is no picture, StorageError where something cannot be read or written.
    """
    pictures = [(picture, trigger) for paths, trigger in sets for picture in read_set(paths).pictures]
    if not pictures:
        raise InputError("There are no pictures yet.")
    taken: set[str] = set()
    with storage_errors(file), zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for picture, trigger in pictures:
            stem = _stem(picture, taken)
            folder = f"{max(1, picture.repeats)}_{trigger}"
            archive.write(picture.path, f"{folder}/{stem}{picture.path.suffix.lower()}")
            if picture.caption is not None:
                archive.writestr(f"{folder}/{stem}.txt", read_caption(picture.caption) + "\n")
            if picture.mask is not None:
                archive.write(picture.mask, f"masks/{stem}{picture.mask.suffix.lower()}")


def _stem(picture: SetPicture, taken: set[str]) -> str:
    """A name that no other picture has, also where systems do not tell capitals apart: captions and masks go by it."""
    plain = PurePosixPath(picture.name).with_suffix("").as_posix().replace("/", "_")
    stem, number = plain, 1
    while stem.lower() in taken:
        number += 1
        stem = f"{plain}_{number}"
    taken.add(stem.lower())
    return stem
