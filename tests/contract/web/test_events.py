"""Server-sent events from a real server: what a page gets, what it gets after a break, and what it costs."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytest
import requests
from pydantic import BaseModel
from sqlalchemy import text

from lora_foundry.errors import RetryableError
from lora_foundry.settings import Settings
from lora_foundry.tasks.pipelines import Pipeline
from lora_foundry.tasks.store import TaskStore
from lora_foundry.web import hub as hubs
from lora_foundry.web.hub import Hub, Stream
from tests.contract.web.conftest import ELARA, serving


class Got(NamedTuple):
    id: str
    kind: str
    data: Any


@contextmanager
def listening(address: str, last: str | None = None) -> Iterator[Iterator[Got]]:
    headers = {} if last is None else {"last-event-id": last}
    with requests.get(address, headers=headers, stream=True, timeout=20) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        yield parsed(answer)


def parsed(answer: requests.Response) -> Iterator[Got]:
    fields: dict[str, str] = {}
    for line in answer.iter_lines(chunk_size=1, decode_unicode=True):
        if line:
            name, _, value = line.partition(": ")
            fields[name] = value
        elif "event" in fields:
            yield Got(fields["id"], fields["event"], json.loads(fields["data"]))
            fields = {}


@pytest.fixture
def server(settings: Settings) -> Iterator[str]:
    with serving(settings) as address:
        yield f"{address}/api/v1"


def start(server: str) -> str:
    return str(requests.post(f"{server}/pipelines", json=ELARA, timeout=20).json()["id"])


def test_a_page_is_told_of_new_and_changed_pipelines(server: str) -> None:
    with listening(f"{server}/events") as events:
        assert next(events).kind == "hello"
        pipeline = start(server)
        made = next(events)
        assert (made.kind, made.data["id"], made.data["status"]) == ("pipeline", pipeline, "pending")
        requests.post(f"{server}/pipelines/{pipeline}/cancel", timeout=20)
        assert next(events).data["status"] == "cancelled"


def test_a_page_of_one_pipeline_gets_its_state_first_and_nothing_of_others(server: str) -> None:
    mine, other = start(server), start(server)
    with listening(f"{server}/pipelines/{mine}/events") as events:
        assert next(events).kind == "hello"
        assert next(events).data["id"] == mine
        requests.post(f"{server}/pipelines/{other}/cancel", timeout=20)
        requests.post(f"{server}/pipelines/{mine}/cancel", timeout=20)
        changed = next(events)
        assert (changed.data["id"], changed.data["status"]) == (mine, "cancelled")
    assert requests.get(f"{server}/pipelines/none/events", timeout=20).status_code == 404


def test_a_page_that_comes_back_gets_what_it_missed(server: str) -> None:
    with listening(f"{server}/events") as events, listening(f"{server}/events") as others:
        last = next(events).id
        next(others)
        pipeline = start(server)
        next(others)  # the watch goes on for everybody
        requests.post(f"{server}/pipelines/{pipeline}/cancel", timeout=20)
        next(others)
    with listening(f"{server}/events", last) as events:
        assert [next(events).data["status"], next(events).data["status"]] == ["pending", "cancelled"]


def test_after_a_restart_a_page_is_told_to_ask_for_everything(settings: Settings) -> None:
    with serving(settings) as address, listening(f"{address}/api/v1/events") as events:
        last = next(events).id
    with serving(settings) as address, listening(f"{address}/api/v1/events", last) as events:
        assert next(events).kind == "reset"
    with (
        serving(settings) as address,
        listening(f"{address}/api/v1/events", "rubbish-ü".encode().decode("latin-1")) as events,
    ):
        assert next(events).kind == "reset"


class Shown(BaseModel):
    id: str


def in_memory(settings: Settings, scenario: Any) -> None:
    async def show(pipeline: Pipeline) -> BaseModel:
        return Shown(id=pipeline.id)

    async def run() -> None:
        store = TaskStore(settings.task_database)
        await store.upgrade()
        hub = Hub(store, show)
        try:
            await scenario(hub, store)
        finally:
            await hub.finish()
            await store.close()

    asyncio.run(run())


def test_a_page_that_reads_too_slowly_costs_one_event_a_pipeline(settings: Settings) -> None:
    async def scenario(hub: Hub, store: TaskStore) -> None:
        stream = Stream(None)
        hub._streams.add(stream)
        for number in range(10_000):
            hub.publish("pipeline", f"p{number % 3}", str(number).encode())
        assert [event.data.split(b"data: ")[1] for event in stream.waiting.values()] == [
            b"9997\n\n",
            b"9998\n\n",
            b"9999\n\n",
        ]
        assert len(hub._past) == hubs.REMEMBERED

    in_memory(settings, scenario)


def test_one_look_at_the_table_serves_all_streams(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = 0
    real = hubs.pulse

    async def counted(store: TaskStore) -> dict[str, str]:
        nonlocal looks
        looks += 1
        return await real(store)

    monkeypatch.setattr(hubs, "pulse", counted)

    async def scenario(hub: Hub, store: TaskStore) -> None:
        streams = [await hub.stream(None, None) for _ in range(50)]
        for stream in streams:
            assert await anext(stream) == hubs.RETRY
            assert b"event: hello" in await anext(stream)
        assert hub.open_streams == 50
        assert looks <= 2
        async with store.writing() as connection:
            for statement in (
                "INSERT INTO echo_tasks (id, name, task_type, status) VALUES (99, 'x', 'LORA_STAGE', 'retrying')",
                "INSERT INTO lora_foundry_tasks (id, kind, lane, status, priority, pipeline, uuid) "
                "VALUES (99, 'stage', 'gpu', 'pending', 3, 'p', 'u')",
            ):
                await connection.execute(text(statement))
        got = await asyncio.gather(*(anext(stream) for stream in streams))
        assert len(set(got)) == 1
        assert b'"id":"p"' in got[0]
        for stream in streams:
            await stream.aclose()
        assert hub.open_streams == 0

    in_memory(settings, scenario)


def test_one_stream_too_many_is_refused(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hubs, "MOST_STREAMS", 1)

    async def scenario(hub: Hub, store: TaskStore) -> None:
        stream = await hub.stream(None, None)
        await anext(stream)
        with pytest.raises(RetryableError):
            await hub.stream(None, None)
        await stream.aclose()

    in_memory(settings, scenario)


def test_a_hub_is_finished_when_its_look_at_the_table_has_ended(settings: Settings) -> None:
    """Else the event loop may close under a query, whose thread then dies with a traceback on the terminal."""

    async def scenario(hub: Hub, store: TaskStore) -> None:
        stream = await hub.stream(None, None)
        await hub.finish()
        assert asyncio.all_tasks() == {asyncio.current_task()}
        await stream.aclose()

    in_memory(settings, scenario)


def test_a_closed_hub_ends_its_streams(settings: Settings) -> None:
    async def scenario(hub: Hub, store: TaskStore) -> None:
        stream = await hub.stream(None, None)
        assert [await anext(stream) for _ in range(2)]
        hub.close()
        assert [data async for data in stream] == []

    in_memory(settings, scenario)
