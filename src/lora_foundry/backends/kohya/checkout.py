"""Finds the user's sd-scripts and its Python before any work is done, since a training that fails after an hour
for want of a folder is worse than one that never began."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from lora_foundry.errors import InputError
from lora_foundry.families._shared.registry import families_with, family_part

_PROOF = "train_network.py"  # a file that every checkout has
_ENVIRONMENTS = ("venv/bin/python", ".venv/bin/python", "venv/Scripts/python.exe", ".venv/Scripts/python.exe")


@dataclass(frozen=True)
class Checkout:
    """A folder with sd-scripts in it, and the Python that has what it requires."""

    folder: Path
    python: Path

    def script(self, family: str) -> Path:
        """The training script for a family of base models. Raises InputError where there is none."""
        known = families_with("kohya")
        if family not in known:
            raise InputError(
                f"train.backend = 'kohya' trains {' and '.join(known)} models only, and the base is "
                f"of the family {family!r}; set train.backend to 'inprocess'."
            )
        path = self.folder / str(family_part(family, "kohya").SCRIPT)
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
    if not (folder / _PROOF).is_file():
        raise InputError(
            f"LORA_FOUNDRY_KOHYA={folder} is no checkout of sd-scripts (it has no {_PROOF}); set it to the "
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
