"""A LoRA as one zip file with what an upload page such as Civitai's asks for: the file, pictures that carry their generation
data (inside, where such pages read it, and as text beside), a description and the trigger word, each in a file of its own."""

from __future__ import annotations

import zipfile
from pathlib import Path

from lora_foundry.errors import InputError
from lora_foundry.files.storage import storage_errors, write_aside
from lora_foundry.hubs.card import PICTURES, description
from lora_foundry.hubs.release import Release


def write(release: Release, file: Path) -> Path:
    """Writes the zip file, aside and then renamed. Raises InputError where there is a file already, StorageError."""
    if file.exists():
        raise InputError(f"{file} is there already; choose another name, or remove it first.")

    def fill(aside: Path) -> None:
        with zipfile.ZipFile(aside, "w", zipfile.ZIP_STORED) as archive:
            archive.write(release.lora, f"{release.name}.safetensors")
            archive.writestr("description.md", description(release))
            archive.writestr("trigger_words.txt", f"{release.trigger}\n")
            for each in release.pictures:
                archive.writestr(f"{PICTURES}/{each.name}", each.data)
                if each.made_with:
                    archive.writestr(f"{PICTURES}/{Path(each.name).stem}.txt", each.made_with + "\n")

    with storage_errors(file):
        write_aside(file, fill)
    return file
