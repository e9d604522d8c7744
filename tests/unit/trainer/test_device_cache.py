"""What fits is asked for once; what does not is asked for each time."""

from __future__ import annotations

import torch
from torch import Tensor

from lora_foundry.trainer.caches import DeviceCache


def test_tensors_are_kept_while_there_is_room() -> None:
    asked: list[int] = []

    def lookup(index: int) -> Tensor:
        asked.append(index)
        return torch.full((4,), float(index))

    kept = DeviceCache(lookup, torch.device("cpu"), room=2 * 16)
    for _ in range(2):
        for index in range(3):
            assert kept(index).tolist() == [float(index)] * 4
    assert asked == [0, 1, 2, 2]
    asked.clear()
    plain = DeviceCache(lookup, torch.device("cpu"))
    assert [plain(0).sum(), plain(0).sum()] == [0, 0]
    assert asked == [0, 0]
