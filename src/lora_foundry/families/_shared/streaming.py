"""Blocks of a frozen network that wait in the computer's memory and come to the GPU when they are computed, each while the
one before it computes: a base that is larger than the card, drawn with and trained to the same bits. diffusers' group
offloading is made for drawing alone: it lets blocks of a backward pass lie (docs/decisions/0023-small-cards.md).

Why the gradients are right: under gradient checkpointing a block's backward pass computes the block anew, and what it then
saves are references to the weights as they lie on the GPU at that moment, which live until they were used. Without
checkpointing they would all live until the backward pass, which is why streaming asks for it. In a block that is not there,
NaN stands where its weights were: whatever would compute with them ends the training instead of spoiling it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import nan
from typing import Any

import torch
from torch import Tensor, nn

from lora_foundry.families._shared.devices import total_memory
from lora_foundry.families._shared.quantised import repeated_blocks

WAITING = 0.5  # of the computer's memory, as much as Windows lends to GPUs in a form that it cannot swap out
_KEPT_FREE = 1 << 30  # bytes of a GPU, for what is computed with a network that lies on it whole
_ALIGNED = 256  # bytes: where a GPU reads widely


@dataclass(frozen=True)
class _Place:
    """Where a tensor lies in its block's buffer."""

    tensor: Tensor
    first: int
    dtype: torch.dtype
    shape: torch.Size
    absent: Tensor


class _Waiting:
    """A block's frozen tensors in one piece of the computer's memory, so that one copy brings them."""

    def __init__(self, block: nn.Module, device: torch.device, pinned: bool) -> None:
        found = [tensor for tensor in (*block.parameters(), *block.buffers()) if not tensor.requires_grad]
        self._places: list[_Place] = []
        first = 0
        for tensor in found:
            absent = _absent(tensor, device)
            self._places.append(_Place(tensor, first, tensor.dtype, tensor.shape, absent))
            first += -(-tensor.nbytes // _ALIGNED) * _ALIGNED
        self.bytes = first
        self._buffer = torch.empty(first, dtype=torch.uint8, pin_memory=pinned)
        for place in self._places:
            self._view(self._buffer, place).copy_(place.tensor.detach())
        self.remove()

    def copy_to(self, room: Tensor) -> None:
        """Copies all of it into `room` (bytes,) on the device."""
        room.copy_(self._buffer, non_blocking=True)

    def put(self, room: Tensor) -> None:
        """Has the block compute with what lies in `room`."""
        for place in self._places:
            place.tensor.data = self._view(room, place)

    def remove(self) -> None:
        """Leaves NaN in the place of the weights: one number each, that looks like all of them."""
        for place in self._places:
            place.tensor.data = place.absent

    @staticmethod
    def _view(room: Tensor, place: _Place) -> Tensor:
        count = place.shape.numel() * place.dtype.itemsize
        return room[place.first : place.first + count].view(place.dtype).view(place.shape)


def _absent(tensor: Tensor, device: torch.device) -> Tensor:
    value = nan if tensor.is_floating_point() else 0
    return torch.full((1,), value, dtype=tensor.dtype, device=device).expand(tensor.shape)


class Streamed:
    """Brings `blocks` to `device` one after another, in whatever order they are computed, the next one meanwhile."""

    def __init__(self, blocks: Sequence[nn.Module], device: torch.device) -> None:
        self._device = device
        size = sum(tensor.nbytes for block in blocks for tensor in (*block.parameters(), *block.buffers()))
        # Pinned memory is copied to a GPU beside what it computes; other memory must be copied there first.
        pinned = device.type == "cuda" and size <= WAITING * total_memory()
        self._blocks = [_Waiting(block, device, pinned) for block in blocks]
        self._order: list[int] = []  # as they were first computed
        self._last, self._forward = -1, True
        self._present: dict[int, tuple[Tensor, torch.cuda.Event | None]] = {}
        stream: Any = torch.cuda.Stream  # untyped in the library
        self._copying: torch.cuda.Stream | None = stream(device) if device.type == "cuda" else None
        self.brought = 0  # copies made, for whoever wants to know
        for index, block in enumerate(blocks):
            block.register_forward_pre_hook(_Bring(self, index))

    @property
    def resident(self) -> int:
        """Bytes that lie on the device now."""
        return sum(room.nbytes for room, _ in self._present.values())

    @property
    def present(self) -> list[int]:
        """Which blocks lie on the device now, or come to it."""
        return sorted(self._present)

    @property
    def block_bytes(self) -> list[int]:
        """What each block takes where it waits, and on the device while it is there."""
        return [block.bytes for block in self._blocks]

    def bring(self, index: int) -> None:
        """Before a block computes: it is brought, all others are let go of, and the next one begins to come."""
        following = self._expect(index)
        for other in set(self._present) - {index, following}:
            self._let_go(other)
        self._fetch(index)
        room, copied = self._present[index]
        if copied is not None:
            torch.cuda.current_stream(self._device).wait_event(copied)
        self._blocks[index].put(room)
        if following is not None:
            self._fetch(following)

    def _fetch(self, index: int) -> None:
        """Begins to copy a block, if it is not there. The room belongs to the stream that computes: it is free again for
        others only when what was computed with it is done."""
        if index in self._present:
            return
        self.brought += 1
        room = torch.empty(self._blocks[index].bytes, dtype=torch.uint8, device=self._device)
        if self._copying is None:
            self._blocks[index].copy_to(room)
            self._present[index] = room, None
            return
        # The room may be one whose last use is still being computed.
        self._copying.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._copying):
            self._blocks[index].copy_to(room)
            self._present[index] = room, self._copying.record_event()

    def _let_go(self, index: int) -> None:
        _, copied = self._present.pop(index)
        if copied is not None:  # else a copy that nobody waited for could write where others are by now
            torch.cuda.current_stream(self._device).wait_event(copied)
        self._blocks[index].remove()

    def _expect(self, index: int) -> int | None:
        """Which block will be computed after this one: the next on the way forward, the previous on the way back."""
        if index not in self._order:
            self._order.append(index)
        place, ends = self._order.index(index), len(self._order) - 1
        if place == 0:
            self._forward = True
        elif place < self._last or (place == self._last and place == ends):
            self._forward = False
        elif place > self._last:
            self._forward = True
        self._last = place
        if self._forward and place == ends and len(self._order) == len(self._blocks):
            # The way back begins where the way forward ends; drawing begins anew.
            return self._order[place - 1 if torch.is_grad_enabled() else 0] if ends else None
        following = place + (1 if self._forward else -1)
        return self._order[following] if 0 <= following <= ends else None


class _Bring:
    """What a streamed block does before it computes."""

    def __init__(self, streamed: Streamed, index: int) -> None:
        self.streamed, self._index = streamed, index

    def __call__(self, block: nn.Module, given: Any) -> None:
        self.streamed.bring(self._index)


def stream(network: nn.Module, device: torch.device) -> None:
    """Streams all repeated blocks of a frozen network to `device`, where the rest of it goes."""
    Streamed(list(repeated_blocks(network).values()), device)
    network.to(device)


def bring_or_stream(network: nn.Module, device: torch.device, room: int | None = None) -> None:
    """Brings a frozen network to `device`; where `room` bytes (by default what is free on a GPU) do not hold it, streams its
    blocks. What it computes is the same, so that what others use may decide."""
    if room is None and device.type == "cuda":
        room = torch.cuda.mem_get_info(device)[0] - _KEPT_FREE
    size = sum(tensor.nbytes for tensor in network.parameters())
    if room is not None and size > room:
        stream(network, device)
    else:
        network.to(device)


def streams_of(network: nn.Module) -> Streamed | None:
    """What brings a network's blocks; None where all of its weights are at hand."""
    hooks = (hook for module in network.modules() for hook in module._forward_pre_hooks.values())
    return next((hook.streamed for hook in hooks if isinstance(hook, _Bring)), None)


def streamed_places(blocks: int, share: float) -> list[int]:
    """Which of so many blocks are streamed: a share of them, evenly spread, so that each has the time of those between to
    come; at least one where the share is not zero."""
    count = min(blocks, max(1, round(blocks * share))) if share > 0 else 0
    return [place * blocks // count for place in range(count)]
