"""Four hundred hostile rows, and more that hypothesis finds: each of ours fails with one sentence, others' stay as they
are to the byte, the good row behind them is done, and the lists of tasks can be read."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3
import time
from pathlib import Path
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as settings_of_hypothesis
from hypothesis import strategies as st
from starlette.testclient import TestClient
from typer.testing import CliRunner

from lora_foundry.cli.app import app
from lora_foundry.errors import PermanentError
from lora_foundry.settings import Settings
from lora_foundry.tasks.payloads import prepare
from lora_foundry.tasks.store import Failure, TaskStore
from lora_foundry.tasks.worker import Worker, WorkerOptions
from lora_foundry.web.app import create_app
from tests.contract.conftest import database_url, postgresql_server
from tests.contract.taking import admit
from tests.host.hostile_rows import GOOD, Row, drawn_rows, rows, text
from tests.host.shared import ENDED, JOBS, QUICK

__all__ = ["database_url", "postgresql_server"]
pytestmark = pytest.mark.usefixtures("forked_children")
REFUSALS = (sqlite3.Error, psycopg.Error, UnicodeEncodeError)


class Table:
    """The shared table by a plain connection, bytes for bytes."""

    def __init__(self, url: str) -> None:
        self.sqlite = url.startswith("sqlite")
        self.connection: Any = (
            sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)
            if self.sqlite
            else psycopg.connect(url, autocommit=True)
        )
        if self.sqlite:
            self.connection.text_factory = bytes

    def insert(self, row: Row) -> int | None:
        """The row's id; None where the database refuses it, so that it can be in no table."""
        try:
            return int(self.connection.execute(row.insert() + " RETURNING id").fetchone()[0])
        except REFUSALS:
            return None

    def image(self, ids: list[int]) -> list[Any]:
        listed = ", ".join(map(str, ids))
        what = "quote(name) || quote(task_type) || quote(payload)" if self.sqlite else "echo_tasks::text"
        columns = f"{what}, *" if self.sqlite else what
        return list(
            self.connection.execute(f"SELECT {columns} FROM echo_tasks WHERE id IN ({listed}) ORDER BY id")
        )

    def ends(self, ids: list[int]) -> dict[int, tuple[str, str]]:
        listed = ", ".join(map(str, ids))
        query = f"SELECT id, status, error FROM echo_tasks WHERE id IN ({listed})"
        return {row[0]: (_text(row[1]), _text(row[2])) for row in self.connection.execute(query)}

    def unfinished(self, ids: list[int]) -> list[tuple[int, str]]:
        """Rows that have not ended yet; without what is written in them, which is long."""
        listed, ended = ", ".join(map(str, ids)), ", ".join(map(text, ENDED))
        query = f"SELECT id, status FROM echo_tasks WHERE id IN ({listed}) AND status NOT IN ({ended})"
        return [(row[0], _text(row[1])) for row in self.connection.execute(query)]


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value or "")


def test_hostile_rows_stop_nothing(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LORA_FOUNDRY_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("LORA_FOUNDRY_DATABASE_URL", database_url)
    asyncio.run(TaskStore(database_url).upgrade())
    table = Table(database_url)
    made = [(number, row) for row in rows() if (number := table.insert(row)) is not None]
    assert len(made) > 250
    ours = [number for number, row in made if row.ours]
    others = [number for number, row in made if not row.ours]
    ours += _circles(table, max(ours))
    good = table.insert(
        Row(True, {"task_type": "'LORA_GENERATION'", "payload": text(json.dumps(GOOD)), "priority": "5"})
    )
    assert good
    before = table.image(others)

    async def scenario() -> None:
        store, stop = TaskStore(database_url), asyncio.Event()
        worker = asyncio.create_task(
            Worker(store, Settings(), WorkerOptions(JOBS, {"gpu": 40, "cpu": 40}, QUICK)).run(stop)
        )
        end = time.monotonic() + 400
        while left := table.unfinished([*ours, good]):
            assert not worker.done(), worker
            assert time.monotonic() < end, left[:5]
            await asyncio.sleep(0.3)
        assert not worker.done()
        stop.set()
        await worker
        assert len(await store.recent(limit=1000)) == len(made) + 4
        await store.counts()
        await store.close()

    asyncio.run(scenario())
    assert table.ends([good])[good][0] == "completed"
    kinds = dict(made)
    for number, (status, error) in table.ends(ours).items():
        assert status in ("failed", "cancelled"), (kinds.get(number), status)
        assert 10 < len(error) < 500, (kinds.get(number), error)
        assert "\n" not in error, error
    assert table.image(others) == before
    for command in (["tasks", "list", "--limit", "1000"], ["tasks", "list", "--json"], ["stats"], ["tasks", "pipelines"],
                    ["tasks", "show", str(ours[0])]):  # fmt: skip
        done = CliRunner().invoke(app, command)
        assert done.exit_code == 0, (command, done.output[-500:], done.exception)
    with TestClient(create_app(Settings(), None), base_url="http://127.0.0.1:8189") as web:
        for address in ("tasks?limit=500", "pipelines", f"tasks/{ours[0]}", f"tasks/{others[-1]}"):
            answer = web.get(f"/api/v1/{address}")
            assert answer.status_code == 200, (address, answer.text[:500])
    table.connection.close()
    outside = {path.name for path in tmp_path.iterdir()} - {
        "home",
        "tasks.db",
        "tasks.db-wal",
        "tasks.db-shm",
    }
    assert not [name for name in outside if not name.startswith("tasks.db")]


def _circles(table: Table, last: int) -> list[int]:
    """A row that waits for itself, and two that wait for one another."""
    base = {"task_type": "'LORA_GENERATION'", "payload": text(json.dumps(GOOD))}
    numbers = [table.insert(Row(True, base | {"dependencies": "'[-1]'"})) for _ in range(3)]
    own, first, second = (number or 0 for number in numbers)
    for number, parent in ((own, own), (first, second), (second, first)):
        table.connection.execute(f"UPDATE echo_tasks SET dependencies = '[{parent}]' WHERE id = {number}")
    return [own, first, second]


@pytest.fixture(scope="module")
def tables(postgresql_server: str, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A table of each kind that many examples share: rows that were written stay written."""
    with psycopg.connect(postgresql_server, autocommit=True) as connection:
        connection.execute(
            "SET client_min_messages = error; DROP SCHEMA public CASCADE; CREATE SCHEMA public"
        )
    urls = [f"sqlite:///{tmp_path_factory.mktemp('hostile') / 'tasks.db'}", postgresql_server]
    for url in urls:
        asyncio.run(TaskStore(url).upgrade())
    return urls


@settings_of_hypothesis(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(drawn=st.lists(drawn_rows(), min_size=1, max_size=6))
def test_whatever_rows_are_drawn_ours_end_and_others_stay(
    drawn: list[Row], tables: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    settings = Settings(home=Path(tmp_path_factory.getbasetemp()) / "home")

    async def work(url: str) -> None:
        store = TaskStore(url)
        while taken := await admit(store, "w", {"gpu": 3, "cpu": 3}):
            for each in taken:
                row = await store.get(each.task.id or 0)
                with contextlib.suppress(PermanentError):
                    prepare(each.kind, row.payload, settings)
                    raise AssertionError(f"{row} can be run")
                await store.fail(row, each.lease, Failure("no", permanent=True))
        await store.recent(limit=50)
        await store.close()

    for url in tables:
        table = Table(url)
        made = [(number, row) for row in drawn if (number := table.insert(row)) is not None]
        ours = [number for number, row in made if row.ours]
        others = [number for number, row in made if not row.ours]
        before = table.image(others) if others else []
        asyncio.run(work(url))
        assert all(status in ENDED for status, _ in table.ends(ours).values()) if ours else True
        assert (table.image(others) if others else []) == before
        table.connection.close()
