"""Databases as earlier versions and other programs made them go on: nothing of the shared table is changed, rows of
ours keep their history, and what waited or ran goes on. The two fixtures were written by version 0001."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path

import psycopg
import pytest
import sqlalchemy as sa

from lora_foundry.domain.task import Task
from lora_foundry.errors import InputError
from lora_foundry.settings import Settings
from lora_foundry.tasks import pipelines
from lora_foundry.tasks.database import parse_url
from lora_foundry.tasks.migrations.versions.v0002_beside import _ours_among
from lora_foundry.tasks.recovery import reclaim
from lora_foundry.tasks.store import TaskStore
from tests.commands import start_code
from tests.contract.taking import admit
from tests.contract.test_store import ALL, GENERATION, execute, generation, one, run

OLD = Path(__file__).parents[1] / "data" / "version_0001"
CONTRACT = (
    *(
        "id",
        "name",
        "task_type",
        "priority",
        "status",
        "payload",
        "created_at",
        "updated_at",
        "scheduled_for",
    ),
    *(
        "started_at",
        "completed_at",
        "retries",
        "max_retries",
        "timeout",
        "result",
        "error",
        "dependencies",
        "creator",
    ),
)
HOST_TYPES = {"user_request", "LORA_GENERATION", "LORA_TAGGING", "LORA_TRAINING", "monitoring"}
HOST_STATUSES = {"pending", "running", "completed", "failed", "cancelled", "retrying"}


def restore(url: str) -> None:
    """The database of the earlier version."""
    if url.startswith("sqlite"):
        connection = sqlite3.connect(url.removeprefix("sqlite:///"))
        connection.executescript((OLD / "sqlite.sql").read_text())
        connection.close()
    else:
        with psycopg.connect(url, autocommit=True) as server:
            server.execute((OLD / "postgresql.sql").read_text())  # type: ignore[call-overload]


def columns(url: str) -> tuple[str, ...]:
    engine = sa.create_engine(
        parse_url(url).set(drivername="sqlite" if "sqlite" in url else "postgresql+psycopg")
    )
    found = tuple(column["name"] for column in sa.inspect(engine).get_columns("echo_tasks"))
    engine.dispose()
    return found


def states(rows: list[Task]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for row in sorted(rows, key=lambda row: row.id or 0):
        found.setdefault(row.name.split()[-1], []).append(row.status)
    return found


def test_what_an_earlier_version_left_goes_on_beside_the_table(database_url: str) -> None:
    restore(database_url)
    assert "ticket" in columns(database_url)
    foreign = (
        "SELECT id, name, task_type, status, payload, updated_at FROM echo_tasks WHERE id <= 3 ORDER BY id"
    )
    before = execute(database_url, foreign)

    async def scenario(store: TaskStore) -> None:
        assert columns(database_url) == CONTRACT
        assert execute(database_url, foreign) == before
        for types, statuses in [({row[0] for row in execute(database_url, "SELECT task_type FROM echo_tasks")},
                                 {row[0] for row in execute(database_url, "SELECT status FROM echo_tasks")})]:  # fmt: skip
            assert types <= HOST_TYPES
            assert statuses <= HOST_STATUSES
        named = {pipeline.character: pipeline for pipeline in await pipelines.recent_pipelines(store)}
        assert {name: pipeline.status.value for name, pipeline in named.items()} == {
            "Finished": "completed", "Failed": "failed", "Retried": "retrying", "Running": "running", "Waiting": "pending",
        }  # fmt: skip
        assert named["Finished"].stages[3].seconds == 1.5
        assert named["Running"].stages[1].progress == {
            "stage": "generate",
            "done": 3,
            "total": 6,
            "unit": "image",
        }
        assert len(await reclaim(store, 10)) == 1  # the worker of the earlier version is long gone
        begun = {each.task.name for each in await admit(store, "w", ALL)}
        assert begun == {"generate Retried", "curate Running", "generate Waiting", "Generate Legacy", "hand"}
        again = await pipelines.retry(store, Settings(), named["Failed"].id)
        assert [row.name.split()[0] for row in again] == ["curate", "caption", "train", "evaluate", "publish"]
        assert (await one(store)).task.name == "curate Failed"
        assert len(await pipelines.cancel(store, named["Waiting"].id)) == 6
        await store.upgrade()
        assert states(await store.recent())["Finished"] == ["completed"] * 6

    run(database_url, scenario)


def test_columns_that_a_host_has_of_its_own_stay() -> None:
    text, number = sa.Text(), sa.Integer()
    made = [("id", number), ("uuid", sa.Uuid()), ("progress", number), ("worker", sa.String(10))]
    added = [("pipeline", text), ("ticket", text), ("resumes", number), ("cancel_requested", number)]
    listed = [{"name": name, "type": kind} for name, kind in made + added]
    assert _ours_among(listed) == ["cancel_requested", "resumes", "ticket", "pipeline"]  # type: ignore[arg-type]
    assert _ours_among(listed[:4]) == []  # type: ignore[arg-type]


DEPLOYED = {
    "postgresql": (
        "CREATE TYPE task_status AS ENUM ('pending','running','completed','failed','cancelled','retrying')",
        "CREATE TYPE task_kind AS ENUM ('user_request','LORA_GENERATION','LORA_TAGGING','LORA_TRAINING','monitoring')",
        "CREATE TABLE echo_tasks (uuid UUID DEFAULT gen_random_uuid(), progress INTEGER DEFAULT 0, worker VARCHAR(4), "
        "id BIGSERIAL, name VARCHAR(255) NOT NULL, task_type task_kind NOT NULL, priority SMALLINT NOT NULL, "
        "status task_status NOT NULL, payload JSONB NOT NULL, created_at TIMESTAMPTZ NOT NULL, "
        "updated_at TIMESTAMPTZ NOT NULL, scheduled_for TIMESTAMPTZ, started_at TIMESTAMPTZ, completed_at TIMESTAMPTZ, "
        "retries INTEGER DEFAULT 0, max_retries INTEGER DEFAULT 3, timeout INTEGER DEFAULT 300, result JSONB, "
        "error TEXT, dependencies JSONB DEFAULT '[]', creator VARCHAR(100) DEFAULT 'echo_autonomous')",
        "ALTER SEQUENCE echo_tasks_id_seq RESTART WITH 3000000000",
    ),
    "sqlite": (
        "CREATE TABLE echo_tasks (uuid BLOB, progress INTEGER DEFAULT 0, worker VARCHAR(4), id INTEGER PRIMARY KEY, "
        "name TEXT, task_type TEXT, priority INTEGER, status TEXT, payload TEXT, created_at TEXT, updated_at TEXT, "
        "scheduled_for TEXT, started_at TEXT, completed_at TEXT, retries INTEGER DEFAULT 0, max_retries INTEGER "
        "DEFAULT 3, timeout INTEGER DEFAULT 300, result TEXT, error TEXT, dependencies TEXT, creator TEXT)",
        "INSERT INTO echo_tasks (id, name, task_type, priority, status, payload) "
        "VALUES (3000000000, 'first', 'monitoring', 3, 'completed', '{}')",
    ),
}


def test_a_table_as_others_deployed_it_is_worked_on_as_it_is(database_url: str) -> None:
    execute(database_url, *DEPLOYED["sqlite" if "sqlite" in database_url else "postgresql"])
    before = columns(database_url)

    async def scenario(store: TaskStore) -> None:
        parent, child = await store.add(generation("parent"), generation("child", max_retries=0))
        execute(
            database_url,
            "INSERT INTO echo_tasks (name, task_type, priority, status, payload, created_at, updated_at, timeout) VALUES "
            "('by hand', 'user_request', 1, 'pending', '{\"character_name\": \"A\", \"description\": \"b\"}', "
            "CURRENT_TIMESTAMP, CURRENT_TIMESTAMP, 3600)",
        )
        assert (parent.id or 0) > 2**31
        taken = await admit(store, "w", ALL)
        assert [each.task.name for each in taken] == ["by hand", "parent", "child"]
        for each in taken[:2]:
            assert await store.report(
                each.task.id or 0, each.lease, {"stage": "generate", "done": 1, "total": 2}
            )
            assert await store.complete(each.task.id or 0, each.lease, {"made": "a\0b\ud800"})
        found = await store.get(parent.uuid)
        assert (found.status, found.progress) == ("completed", {"stage": "generate", "done": 1, "total": 2})
        await store.release(child.id or 0, taken[2].lease)
        await pipelines.cancel(store, child.id or 0)
        assert (await store.counts())["cancelled"] == 1
        assert [task.name for task in await pipelines.retry(store, Settings(), child.id or 0)] == ["child"]
        assert columns(database_url) == before

    run(database_url, scenario)


def test_a_table_that_lacks_a_column_or_a_status_is_refused_with_the_way_out(database_url: str) -> None:
    if "sqlite" in database_url:
        statements = [
            "CREATE TABLE echo_tasks (id INTEGER PRIMARY KEY, name TEXT, task_type TEXT, status TEXT)"
        ]
        said = "ADD COLUMN"
    else:
        statements = [each.replace(",'retrying'", "") for each in DEPLOYED["postgresql"]]
        said = "ADD VALUE"
    execute(database_url, *statements)
    with pytest.raises(InputError, match=said):
        asyncio.run(TaskStore(database_url).upgrade())


def test_many_workers_that_start_at_once_make_all_tables(database_url: str, tmp_path: Path) -> None:
    """The engine's own, too, whose indexes wait for all that is busy in the database."""
    home = str(tmp_path / "home")
    code = f"""
import asyncio
from pathlib import Path
from lora_foundry.settings import Settings
from lora_foundry.tasks.store import TaskStore
from lora_foundry.tasks.worker import Worker, WorkerOptions

async def start():
    store, stop = TaskStore({database_url!r}), asyncio.Event()
    stop.set()
    await Worker(store, Settings(home=Path({home!r})), WorkerOptions("none:none")).run(stop)
    await store.close()

asyncio.run(start())
"""
    ends = [start.done() for start in [start_code(code, tmp_path / "starts") for _ in range(3)]]
    assert [end.returncode for end in ends] == [0] * 3, ends


def test_many_first_starts_at_once(database_url: str, tmp_path: Path) -> None:
    code = f"import asyncio; from lora_foundry.tasks.store import TaskStore; asyncio.run(TaskStore({database_url!r}).upgrade())"
    ends = [start.done() for start in [start_code(code, tmp_path / "starts") for _ in range(4)]]
    assert [end.returncode for end in ends] == [0] * 4, ends
    assert set(CONTRACT) == set(columns(database_url))


@pytest.mark.parametrize("name", ["what?1", "50%20off", "a#b", "a b"])
def test_a_home_may_have_letters_that_mean_something_in_an_address(tmp_path: Path, name: str) -> None:
    settings = Settings(home=tmp_path / name)

    async def scenario(store: TaskStore) -> None:
        await store.add(generation())
        assert (tmp_path / name / "tasks.db").is_file()
        assert [path.name for path in tmp_path.iterdir()] == [name]

    run(settings.task_database, scenario)


# Living beside a host's own worker ------------------------------------------------------------------------------


def host_takes(url: str) -> list[str]:
    """What a host's worker would take: any pending row that is due, dependencies or not."""
    due = "scheduled_for IS NULL OR scheduled_for <= CURRENT_TIMESTAMP"
    rows = execute(url, f"SELECT name FROM echo_tasks WHERE status = 'pending' AND ({due}) ORDER BY id")
    return [row[0] for row in rows]


def test_a_row_of_ours_is_out_of_a_hosts_reach_from_when_it_is_first_seen(database_url: str) -> None:
    async def scenario(store: TaskStore) -> None:
        made = await pipelines.submit(
            store,
            Settings(),
            pipelines.PipelineRequest(character={"name": "Elara", "description": "1girl"}),  # type: ignore[arg-type]
        )
        (watch,) = await store.add(Task(name="watch", task_type="monitoring"))
        execute(
            database_url,
            "INSERT INTO echo_tasks (name, task_type, priority, payload) "
            """VALUES ('hand', 'LORA_GENERATION', 5, '{"character_name": "A", "description": "b"}')""",
        )
        assert host_takes(database_url) == ["watch", "hand"]
        assert await admit(store, "w", {"gpu": 0}) == []
        assert host_takes(database_url) == ["watch"]
        assert {stage.status for stage in (await pipelines.get_pipeline(store, made.id)).stages} == {
            "pending"
        }
        first = await admit(store, "w", {"gpu": 1})
        await store.release(first[0].task.id or 0, first[0].lease)
        assert host_takes(database_url) == ["watch"]
        assert (await store.get(watch.id or 0)).status == "pending"
        for name, value in execute(database_url, "SELECT task_type, status FROM echo_tasks"):
            assert name in HOST_TYPES
            assert value in HOST_STATUSES

    run(database_url, scenario)


def test_what_people_do_to_our_rows_with_sql_holds(database_url: str) -> None:
    async def scenario(store: TaskStore) -> None:
        first, second, third = await store.add(*(generation(name) for name in "abc"))
        (child,) = await store.add(generation("child", dependencies=[first.id]))
        await admit(store, "w", {"gpu": 0})
        execute(
            database_url,
            f"UPDATE echo_tasks SET status = 'cancelled' WHERE id = {first.id}",
            f"UPDATE echo_tasks SET priority = 1 WHERE id = {third.id}",
        )
        taken = await one_after_another(store)
        assert taken == ["c", "b"]
        assert (await store.get(child.id or 0)).status == "cancelled"
        execute(
            database_url, f"UPDATE echo_tasks SET status = 'pending' WHERE id IN ({first.id}, {second.id})"
        )
        assert await one_after_another(store) == ["a", "b"]

    run(database_url, scenario)


async def one_after_another(store: TaskStore) -> list[str]:
    names = []
    while taken := await admit(store, "w", {"gpu": 1}):
        names.append(taken[0].task.name)
        await store.complete(taken[0].task.id or 0, taken[0].lease, {})
    return names


DEEP = "[" * 1500 + "]" * 1500
HOSTILE = {
    "deep": (f'{{"character_name": "A", "description": {DEEP}}}', "[]"),
    "surrogate": ('{"character_name": "\\ud800", "description": "x"}', "[]"),
    "surrogate parent": ('{"character_name": "A", "description": "x"}', '["\\ud800"]'),
    "NUL parent": ('{"character_name": "A", "description": "x"}', '["\\u0000"]'),
    "long parent": ('{"character_name": "A", "description": "x"}', f'["{"n" * 100_000}"]'),
    "deep parents": ('{"character_name": "A", "description": "x"}', DEEP),
    "NUL uuid": ('{"character_name": "A", "description": "x", "task_uuid": "\\u0000"}', "[]"),
}


def test_no_row_stops_the_reading_of_another(database_url: str) -> None:
    async def scenario(store: TaskStore) -> None:
        async with store.writing() as connection:
            for name, (payload, parents) in HOSTILE.items():
                sql = (
                    "INSERT INTO echo_tasks (name, task_type, payload, dependencies) VALUES (:n, :t, :p, :d)"
                )
                if store.dialect == "postgresql":
                    sql = sql.replace(":p", "CAST(:p AS json)").replace(":d", "CAST(:d AS json)")
                for kind in ("LORA_GENERATION", "user_request"):
                    values = {"n": name, "t": kind, "p": payload, "d": parents}
                    await connection.execute(sa.text(sql), values)
        await store.add(generation("good", priority=5))
        names = {each.task.name for each in await admit(store, "w", ALL)}
        assert "good" in names
        for task in await store.recent():
            assert len(task.error or "") < 500
            if "parent" in task.name and "deep" not in task.name:
                assert task.status == "failed", task
        # A user_request that cannot be read as text is left alone: nobody can say whose it is.
        pending = {(task.name, task.task_type) for task in await store.recent() if task.status == "pending"}
        assert pending == {(name, "user_request") for name in ("deep", "surrogate", "NUL uuid")}

    run(database_url, scenario)
    assert GENERATION
