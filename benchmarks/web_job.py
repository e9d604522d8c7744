"""What a child of the web benchmark does, in a module that loads nothing else."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any


def compute(work: dict[str, Any], tell: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Arithmetic in as many steps as the character's description says, with news after each; the seconds it took."""
    total = int(work["run"]["character"]["description"].split()[1])
    started = time.perf_counter()
    value = 0
    for done in range(total):
        for number in range(200_000):
            value = (value * 31 + number) % 1_000_003
        event = {
            "stage": "train",
            "done": done + 1,
            "total": total,
            "unit": "step",
            "loss": 0.5,
            "message": str(value),
        }
        tell({"progress": event})
    return {"seconds": time.perf_counter() - started}
