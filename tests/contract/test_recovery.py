"""Fail-over: who counts as dead, and that what a dead worker held is given back once. On SQLite and on PostgreSQL."""

from __future__ import annotations

import asyncio
import subprocess

from lora_foundry.tasks.recovery import Own, bury, heartbeat, is_served, reclaim, this_process, workers
from lora_foundry.tasks.store import TaskStore
from tests.contract.taking import admit, queues
from tests.contract.test_store import execute, generation, one, run


def test_rows_of_a_dead_worker_are_given_back_once(database_url: str) -> None:
    async def scenario(store: TaskStore) -> None:
        assert not await heartbeat(store, "dead", "gpu")
        assert not await heartbeat(store, "live", "gpu")
        await store.add(generation("1"), generation("2"))
        (lost,) = await admit(store, "dead", {"gpu": 1})
        (kept,) = await admit(store, "live", {"gpu": 1})
        execute(
            database_url,
            "UPDATE lora_foundry_executors SET beat = 0 WHERE id = 'dead'",
            f"UPDATE echo_tasks SET updated_at = '2001-01-01' WHERE id = {lost.task.id}",
        )
        await store.report(kept.task.id or 0, kept.lease, {})
        assert [worker.name for worker in await workers(store)] == ["live"]
        taken = await asyncio.gather(*[reclaim(store, 60) for _ in range(4)])
        assert [each for batch in taken for each in batch] == [(lost.task.id, lost.lease)]
        assert not await store.complete(lost.task.id or 0, lost.lease, {})
        assert (await one(store, "live")).task.id == lost.task.id
        assert await reclaim(store, 3600.0) == []
        await bury(store, queues(), 60)
        assert not await heartbeat(store, "dead", "gpu")  # it learns that it was forgotten

    run(database_url, scenario)


def test_a_living_worker_gives_back_what_it_holds_and_does_not_run(database_url: str) -> None:
    async def scenario(store: TaskStore) -> None:
        for worker in ("one", "other"):
            await heartbeat(store, worker, "gpu")
        await store.add(*(generation(name) for name in "abcd"))
        stray, young, at_work = await admit(store, "one", {"gpu": 3})
        (anothers,) = await admit(store, "other", {"gpu": 1})
        old = ", ".join(str(each.task.id) for each in (stray, at_work, anothers))
        execute(database_url, f"UPDATE echo_tasks SET updated_at = '2001-01-01' WHERE id IN ({old})")
        own = Own("one", frozenset({at_work.lease}))
        assert await reclaim(store, 60, own) == [(stray.task.id, stray.lease)]
        assert await reclaim(store, 60, own) == []
        assert (await store.get(stray.task.id or 0)).status == "pending"
        assert (await store.get(young.task.id or 0)).status == "running"  # its attempt may just be starting

    run(database_url, scenario)


def test_a_worker_whose_process_has_ended_here_is_dead_at_once(database_url: str) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()

    async def scenario(store: TaskStore) -> None:
        for worker in ("live", "elsewhere", "ended"):
            await heartbeat(store, worker, "gpu,cpu")
        place = this_process().rpartition("/")[0]
        hosts = {"ended": f"{place}/{ended.pid}", "elsewhere": f"another machine/{ended.pid}"}
        for worker, host in hosts.items():
            execute(database_url, f"UPDATE lora_foundry_executors SET host = '{host}' WHERE id = '{worker}'")
        await store.add(*(generation(worker) for worker in ("live", "elsewhere", "ended")))
        held = [(await admit(store, worker, {"gpu": 1}))[0] for worker in ("live", "elsewhere", "ended")]
        assert [worker.name for worker in await workers(store)] == ["elsewhere", "live"]
        assert await is_served(store)
        assert [lost.task_id for lost in await reclaim(store, 60)] == [held[2].task.id]
        assert await reclaim(store, 60) == []

    run(database_url, scenario)
