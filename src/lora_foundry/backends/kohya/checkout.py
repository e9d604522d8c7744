"""Finds the user's sd-scripts and its Python before any work is done, since a training that fails after an hour
for want of a folder is worse than one that never began."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from lora_foundry.errors import InputError

SCRIPTS = {"sd": "train_network.py", "sdxl": "sdxl_train_network.py"}
_ENVIRONMENTS = ("venv/bin/python", ".venv/bin/python", "venv/Scripts/python.exe", ".venv/Scripts/python.exe")


@dataclass(frozen=True)
class Checkout:
    """A folder with sd-scripts in it, and the Python that has what it requires."""

    folder: Path
    python: Path

    def script(self, family: str) -> Path:
        """The training script for a family of base models. Raises InputError where there is none."""
        if family not in SCRIPTS:
            raise InputError(
                f"train.backend = 'kohya' trains {' and '.join(sorted(SCRIPTS))} models only, and the base is "
                f"of the family {family!r}; set train.backend to 'inprocess'."
            )
        path = self.folder / SCRIPTS[family]
        if not path.is_file():
            raise InputError(f"{self.folder} has no {path.name}; update the sd-scripts checkout there.")
        return path


def find_checkout(folder: Path | None, python: Path | None) -> Checkout:
    """The checkout in `folder` with `python`, or with the environment inside it. Raises InputError saying what
    to set."""
    if folder is None:
        raise InputError(
            "train.backend = 'kohya' needs sd-scripts; set LORA_FOUNDRY_KOHYA to the folder of its checkout, or "
            "train.backend to 'inprocess'."
        )
    folder = folder.expanduser().absolute()
    if not (folder / SCRIPTS["sd"]).is_file():
        raise InputError(
            f"LORA_FOUNDRY_KOHYA={folder} is no checkout of sd-scripts (it has no {SCRIPTS['sd']}); set it to the "
            "folder that holds that file."
        )
    found = [python.expanduser()] if python else [folder / place for place in _ENVIRONMENTS]
    for candidate in found:
        if candidate.is_file() and os.access(candidate, os.X_OK):
            return Checkout(folder, candidate.absolute())
    looked = ", ".join(str(candidate) for candidate in found)
    raise InputError(
        f"No Python to run sd-scripts with (looked for {looked}); set LORA_FOUNDRY_KOHYA_PYTHON to the one that has "
        "its requirements."
    )
