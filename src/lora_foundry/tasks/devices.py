"""The lanes of a worker: how many tasks run at once, and which GPU those on the gpu lane see. Told without loading torch,
which a worker never does. A machine with several GPUs has a worker for each (see service)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from lora_foundry.errors import InputError

MOST_TASKS = 5


def visible_devices(device: str = "auto") -> list[str]:
    """The CUDA devices that this process may use, as CUDA_VISIBLE_DEVICES names them; none on a machine without.

    device: the setting of that name; `cpu` sees none, `cuda:1` only the second.
    """
    if device == "cpu":
        return []
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        devices = [part.strip() for part in chosen.split(",") if part.strip() not in ("", "-1")]
    else:  # a container has the nodes of its own devices only, numbered anew by CUDA
        nodes = [path for path in Path("/dev").glob("nvidia*") if path.name[6:].isdecimal()]
        devices = [str(number) for number in range(len(nodes))]
    _, _, number = device.partition(":")
    return devices[int(number) :][:1] if number.isdecimal() else devices


def lanes_for(choice: str) -> dict[str, int]:
    """How many tasks a worker runs at once in each lane, for `gpu`, `cpu` or `all`."""
    known = {"gpu": {"gpu": 1}, "cpu": {"cpu": MOST_TASKS - 1}, "all": {"gpu": 1, "cpu": MOST_TASKS - 1}}
    if choice not in known:
        raise InputError(f"There is no lane {choice!r}; the lanes are gpu, cpu and all.")
    return known[choice]


def device_for(lane: str, device: str) -> Mapping[str, str]:
    """The environment for a child in that lane: the one GPU that it sees; nothing where there is no choice."""
    seen = visible_devices(device)
    return {"CUDA_VISIBLE_DEVICES": seen[0]} if lane == "gpu" and seen else {}
