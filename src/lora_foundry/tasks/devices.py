"""The lanes of this machine: how many tasks run at once, and which GPU each attempt on the gpu lane sees. Told
without loading torch, which a worker never does."""

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


def lanes_for(choice: str, device: str = "auto") -> dict[str, int]:
    """How many tasks run at once in each lane, for `gpu`, `cpu` or `all`: one a GPU, or one where there is none."""
    gpu = max(1, len(visible_devices(device)))
    cpu = max(1, MOST_TASKS - gpu)
    known = {"gpu": {"gpu": gpu}, "cpu": {"cpu": MOST_TASKS}, "all": {"gpu": gpu, "cpu": cpu}}
    if choice not in known:
        raise InputError(f"There is no lane {choice!r}; the lanes are gpu, cpu and all.")
    return known[choice]


class Devices:
    """Hands out GPUs to the attempts of the gpu lane, each to one at a time."""

    def __init__(self, device: str) -> None:
        self._all = visible_devices(device)
        self._held: dict[str, str] = {}

    def take(self, lease: str, lane: str) -> Mapping[str, str]:
        """The environment for an attempt's child: the one GPU that it sees; nothing where there is no choice."""
        free = [device for device in self._all if device not in self._held.values()]
        if lane != "gpu" or not free:
            return {}
        self._held[lease] = free[0]
        return {"CUDA_VISIBLE_DEVICES": free[0]}

    def give_back(self, lease: str) -> None:
        self._held.pop(lease, None)
