"""Keeps what every epoch asks for again on the device that computes, where it fits: a copy from the computer's memory at
each step makes the GPU wait for the host."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor

_SHARE = 0.1  # of the device's free memory


class Resident:
    """Gives the tensor of a key, kept on `device` once it was asked for, within a tenth of the memory that was free
    at first; beyond that, and on a CPU, `lookup` is simply asked. `room` (bytes) overrules the tenth."""

    def __init__(
        self, lookup: Callable[[Any], Tensor], device: torch.device, room: int | None = None
    ) -> None:
        self._lookup, self._device = lookup, device
        self._kept: dict[Hashable, Tensor] = {}
        self._room = room if room is not None else _free(device)

    def __call__(self, key: Hashable) -> Tensor:
        """The tensor of `key`, on the device; where it is kept, without a copy."""
        if key in self._kept:
            return self._kept[key]
        tensor = self._lookup(key)
        if self._room <= 0:
            return tensor.to(self._device)
        if tensor.nbytes <= self._room:
            self._room -= tensor.nbytes
            self._kept[key] = tensor = tensor.to(self._device)
        return tensor.to(self._device)


def _free(device: torch.device) -> int:
    """Bytes that may be taken; none on a CPU, whose memory is where the tensors are already."""
    if device.type != "cuda":
        return 0
    free, _ = torch.cuda.mem_get_info(device)
    return int(free * _SHARE)
