"""A worker's side of the engine's queues without the engine: for tests of the store, which want to take rows one by one and
look at what the tables then say. What is queued is kept in a list and given out as the engine does it: the most urgent
first, to whoever has room, and not before its pause is over."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from weakref import WeakKeyDictionary

from sqlalchemy.ext.asyncio import AsyncConnection

from lora_foundry.tasks import admission
from lora_foundry.tasks.admission import Inbox
from lora_foundry.tasks.attempts import Admitted, Alone, claim
from lora_foundry.tasks.queues import Entry, queue_of
from lora_foundry.tasks.store import TaskStore


class ListedQueues:
    """Queues in a list. held: who took which attempt out of a queue."""

    shared = True

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.held: dict[str, str] = {}

    async def put(self, entries: Sequence[Entry], connection: AsyncConnection | None = None) -> None:
        self.entries += entries

    async def cancel(self, leases: Sequence[str]) -> None:
        self.entries = [entry for entry in self.entries if entry.lease not in leases]
        for lease in leases:
            self.held.pop(lease, None)

    async def live(self, leases: Sequence[str]) -> set[str]:
        return {*leases} & {*(entry.lease for entry in self.entries), *self.held}

    async def taken(self) -> list[str]:
        return list(self.held)

    async def held_by(self, worker: str) -> list[str]:
        return [lease for lease, holder in self.held.items() if holder == worker]

    async def remove(self, queue: str) -> None:
        """They are known by the attempts in them alone."""

    def next(self, queue: str, worker: str) -> Entry | None:
        """The attempt that a worker gets, if it has room."""
        ready = [entry for entry in self.entries if entry.queue == queue and entry.delay <= 0]
        if not ready:
            return None
        entry = min(ready, key=lambda each: each.priority)
        self.entries.remove(entry)
        self.held[entry.lease] = worker
        return entry


_of_loop: WeakKeyDictionary[asyncio.AbstractEventLoop, ListedQueues] = WeakKeyDictionary()


def queues() -> ListedQueues:
    """The queues of this test; every test has a loop of its own."""
    return _of_loop.setdefault(asyncio.get_running_loop(), ListedQueues())


async def admit(
    store: TaskStore,
    worker: str,
    free: Mapping[str, int],
    pipeline: str | None = None,
    inbox: Inbox | None = None,
) -> list[Admitted]:
    """Queues what may start, and takes as much as there is room for in each lane."""
    alone = Alone(worker, pipeline) if pipeline else None
    while await admission.admit(store, queues(), inbox, alone) and inbox is None:
        pass
    taken: list[Admitted] = []
    for lane, number in free.items():
        room, queue = number, queue_of(lane, worker if alone else None)
        while room and (entry := queues().next(queue, worker)) is not None:
            claimed = await claim(store, worker, entry.task_id, entry.lease, alone)
            if claimed is not None:
                taken.append(claimed)
                room -= 1
    return taken
