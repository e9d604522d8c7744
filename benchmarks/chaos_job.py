"""What a child of the chaos benchmark does, in a module that loads nothing else."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def obey(work: dict[str, Any], tell: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """What a child does: notes that it lives every tenth of a second, then that it finished."""
    folder = Path(work["run"]["dataset_dir"])
    folder.mkdir(parents=True, exist_ok=True)
    for _ in range(int(work["run"]["character"]["description"].split()[1])):
        _note(folder / "lives")
        time.sleep(0.1)
    _note(folder / "ends")
    return {"pid": os.getpid()}


def _note(path: Path) -> None:
    with path.open("a") as file:
        file.write(f"{time.time()} {os.getpid()}\n")
