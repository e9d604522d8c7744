"""Compares what two homes hold of one character: pictures, captions, the LoRA's tensors and the evaluation's pictures.
Two versions of the program that are to draw and learn the same are run with one seed in a home each:

    OMP_NUM_THREADS=1 lora-foundry demo --home OLD     (the earlier version)
    OMP_NUM_THREADS=1 lora-foundry demo --home NEW     (the later one, on the same machine)
    python benchmarks/same_results.py OLD NEW

Ends with 1 where something differs that both have.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors.numpy import load_file


def pixels(path: Path) -> Any:
    with Image.open(path) as image:
        return np.asarray(image)


def compare(old: Path, new: Path, pattern: str, read: Callable[[Path], Any]) -> tuple[int, int, int]:
    """Files of `old` below a folder: how many `new` has, how many of these are the same, and how many there are."""
    files = [path.relative_to(old) for path in old.rglob(pattern)]
    both = [name for name in files if (new / name).is_file()]
    same = sum(np.array_equal(read(old / name), read(new / name)) for name in both)
    return len(both), same, len(files)


def tensors(old: Path, new: Path) -> tuple[int, int, int]:
    """The same for the tensors of two LoRA files."""
    before, after = load_file(old), load_file(new)
    both = before.keys() & after.keys()
    return len(both), sum(np.array_equal(before[key], after[key]) for key in both), len(before)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--character", default="Elara")
    options = parser.parse_args()
    old, new = (home / "datasets" / options.character for home in (options.old, options.new))
    found = {
        "pictures": compare(old / "images", new / "images", "*.png", pixels),
        "captions": compare(old / "images", new / "images", "*.txt", Path.read_bytes),
        "tensors": tensors(old / "training" / "lora.safetensors", new / "training" / "lora.safetensors"),
        "evaluation": compare(
            old / "evaluation" / "pictures", new / "evaluation" / "pictures", "*.png", pixels
        ),
    }
    for name, (both, same, all_) in found.items():
        print(f"{name}: {same} of {both} are the same ({all_} in the old home)")
    raise SystemExit(any(same < both for both, same, _ in found.values()))


if __name__ == "__main__":
    main()
