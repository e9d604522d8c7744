"""The store's promises, the same on SQLite and on PostgreSQL."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from lora_foundry.domain.task import Task, TaskStatus, TaskType
from lora_foundry.errors import BackendError, InputError
from lora_foundry.settings import Settings
from lora_foundry.tasks import admission, pipelines
from lora_foundry.tasks.admission import Inbox
from lora_foundry.tasks.attempts import Admitted
from lora_foundry.tasks.database import connect_arguments, database_errors, parse_url, sync_url
from lora_foundry.tasks.recovery import reclaim
from lora_foundry.tasks.store import MAX_RESUMES, Failure, TaskStore, pause
from tests.contract.taking import admit

GENERATION = {"character_name": "Elara", "description": "1girl, brown hair"}
ALL = {"gpu": 100, "cpu": 100}


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[TaskStore]:
    store = TaskStore(url)
    await store.upgrade()
    try:
        yield store
    finally:
        await store.close()


def run(url: str, scenario: Callable[[TaskStore], Coroutine[Any, Any, None]]) -> None:
    async def inner() -> None:
        async with opened(url) as store:
            await scenario(store)

    asyncio.run(inner())


def execute(url: str, *statements: str) -> list[Any]:
    """SQL by hand, as a producer in another program writes it; the rows of the last statement."""
    address = parse_url(url)
    engine = sa.create_engine(
        sync_url(address), connect_args=connect_arguments(address), poolclass=sa.NullPool
    )
    with engine.begin() as connection:
        for statement in statements:
            result = connection.exec_driver_sql(statement)
        return [tuple(row) for row in result] if result.returns_rows else []


def generation(name: str = "make", *, payload: dict[str, Any] | None = None, **values: Any) -> Task:
    """A task of a character of its own, since one attempt at a time works in a character's folder."""
    payload = payload or (GENERATION if name == "make" else GENERATION | {"character_name": name})
    return Task(name=name, task_type=TaskType.LORA_GENERATION, payload=dict(payload), **values)


async def one(store: TaskStore, worker: str = "w") -> Admitted:
    (admitted,) = await admit(store, worker, ALL)
    return admitted


def test_a_task_is_found_by_its_id_and_by_its_uuid(database_url: str) -> None:
    async def scenario(store: TaskStore) -> None:
        (task,) = await store.add(generation(creator="me"))
        assert isinstance(task.id, int)
        for reference in (task.id, str(task.id), task.uuid):
            found = await store.get(reference)
            assert (found.id, found.payload, found.creator) == (task.id, GENERATION, "me")
            assert found.created_at is not None
        with pytest.raises(InputError, match="no task"):
            await store.get("nobody")

    run(database_url, scenario)


def test_upgrading_twice_changes_nothing(database_url: str) -> None:
    async def scenario(store: TaskStore) -> None:
        await store.add(generation())
        await store.upgrade()
        assert (await store.counts())["pending"] == 1

    run(database_url, scenario)


OLD_TABLE = """CREATE TABLE echo_tasks (id {serial}, name VARCHAR(255) NOT NULL, task_type VARCHAR(50),
    priority INTEGER, status VARCHAR(20), payload {json}, created_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP,
    updated_at TIMESTAMP, scheduled_for TIMESTAMP, started_at TIMESTAMP, completed_at TIMESTAMP,
    retries INTEGER, max_retries INTEGER, timeout INTEGER, result {json}, error TEXT, dependencies {json},
    creator VARCHAR(100))"""


@pytest.mark.parametrize("json_type", ["JSON", "JSONB", "TEXT"])
def test_an_existing_table_is_adopted_with_every_row(database_url: str, json_type: str) -> None:
    serial = "SERIAL PRIMARY KEY" if "postgres" in database_url else "INTEGER PRIMARY KEY AUTOINCREMENT"
    rows = [
        f"INSERT INTO echo_tasks (name, task_type, priority, status, payload) VALUES "
        f"('old {number}', 'monitoring', 3, 'completed', '{{\"n\": {number}}}')"
        for number in range(20)
    ]
    payload = json.dumps(GENERATION)
    rows.append(
        "INSERT INTO echo_tasks (name, task_type, priority, status, payload, dependencies) "
        f"VALUES ('new', 'lora_generation', 3, 'pending', '{payload}', '[]')"
    )
    before = execute(
        database_url,
        OLD_TABLE.format(serial=serial, json=json_type),
        *rows,
        "SELECT * FROM echo_tasks ORDER BY id",
    )

    async def scenario(store: TaskStore) -> None:
        admitted = await one(store)
        assert admitted.task.payload == GENERATION
        assert await store.complete(admitted.task.id or 0, admitted.lease, {"made": 3})
        assert (await store.get(admitted.task.id or 0)).result == {"made": 3}

    async def only_upgrade(store: TaskStore) -> None:
        after = execute(database_url, "SELECT * FROM echo_tasks ORDER BY id")
        assert after == before

    run(database_url, only_upgrade)
    run(database_url, scenario)


def test_a_table_with_text_ids_is_refused_with_the_way_out(database_url: str) -> None:
    execute(
        database_url,
        "CREATE TABLE echo_tasks (id VARCHAR(36) PRIMARY KEY, name TEXT, task_type TEXT, status TEXT)",
        "INSERT INTO echo_tasks VALUES ('a', 'b', 'c', 'd')",
    )

    async def scenario() -> None:
        with pytest.raises(InputError, match="RENAME TO echo_tasks_old"):
            await TaskStore(database_url).upgrade()

    asyncio.run(scenario())
    assert execute(database_url, "SELECT * FROM echo_tasks") == [("a", "b", "c", "d")]


@pytest.mark.parametrize("url", ["mysql://host/db", "sqlite://", "nonsense", "redis://localhost"])
def test_other_databases_are_refused(url: str) -> None:
    with pytest.raises(InputError, match="postgresql://"):
        parse_url(url)


def test_rows_come_by_priority_and_age_and_lanes_limit_them(database_url: str) -> None:
    async def scenario(store: TaskStore) -> None:
        for name, priority in (("c", 3), ("d", 3), ("a", 1), ("e", 5), ("b", 2)):
            await store.add(generation(name, priority=priority))
        order = []
        while taken := await admit(store, "w", {"gpu": 2}):
            assert len(taken) <= 2
            order += [each.task.name for each in taken]
        assert order == ["a", "b", "c", "d", "e"]
        assert await admit(store, "w", {"cpu": 5}) == []

    run(database_url, scenario)


def by_hand(
    url: str, task_type: str, payload: object, priority: int = 3, parents: Sequence[object] = ()
) -> None:
    """A row as another program inserts it, named like its character."""
    words = {"name": payload.get("character_name", "theirs")} if isinstance(payload, dict) else {}
    columns: dict[str, object] = {**words, "task_type": task_type, "priority": priority, "status": "pending"}
    columns |= {"payload": json.dumps(payload), "dependencies": json.dumps(list(parents))}
    values = ", ".join(f"'{value}'" for value in columns.values())
    execute(url, f"INSERT INTO echo_tasks ({', '.join(columns)}) VALUES ({values})")


def test_many_rows_that_were_just_written_hold_up_no_urgent_one(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither ours nor another program's that must be read to be told apart: they are taken in part by part."""
    monkeypatch.setattr(admission, "PAGE", 2)
    monkeypatch.setattr(admission, "PAGES", 2)

    async def scenario(store: TaskStore) -> None:
        for _ in range(6):
            by_hand(database_url, "user_request", {"message": "draw me lora_ things"}, 1)
        for number in range(10):
            parents = [] if number < 8 else [f"uuid-{number - 1}"]
            payload = GENERATION | {"character_name": f"{number}", "task_uuid": f"uuid-{number}"}
            by_hand(database_url, TaskType.LORA_GENERATION, payload, 2 if parents else 3, parents)
        tagging = {"character_name": "urgent", "image_dir": "a", "character_tags": "b"}
        by_hand(database_url, TaskType.LORA_TAGGING, tagging, 1)
        inbox, looks, taken = Inbox(), 0, list[Admitted]()
        while not taken:
            taken = await admit(store, "w", {"cpu": 1}, inbox=inbox)
            looks += 1
            assert taken or inbox.left, "nobody would look again"
        assert [each.task.name for each in taken] == ["urgent"]
        assert looks == 2, "six rows of others and the urgent one are two parts"
        while inbox.left:
            assert await admit(store, "w", {}, inbox=inbox) == []
        assert await one_lane(store, inbox) == [str(number) for number in range(10)]
        statuses = execute(database_url, "SELECT status, count(*) FROM echo_tasks GROUP BY status ORDER BY 1")
        assert statuses == [("completed", 10), ("pending", 6), ("running", 1)]

    run(database_url, scenario)


async def one_lane(store: TaskStore, inbox: Inbox) -> list[str]:
    """All that the GPU's lane gives, one after another, each done at once."""
    names = []
    while taken := await admit(store, "w", {"gpu": 1}, inbox=inbox):
        names.append(taken[0].task.name)
        await store.complete(taken[0].task.id or 0, taken[0].lease, {})
    return names


def test_a_row_of_others_that_ours_depends_on_by_its_payloads_uuid_is_only_read(database_url: str) -> None:
    async def scenario(store: TaskStore) -> None:
        by_hand(database_url, "monitoring", {"task_uuid": "THEIRS-1", "ü": 1.50})
        before = execute(database_url, "SELECT * FROM echo_tasks")
        for name in ("first", "second"):
            by_hand(
                database_url, TaskType.LORA_GENERATION, GENERATION | {"character_name": name}, 3, ["theirs-1"]
            )
        for _ in range(2):
            assert await admit(store, "w", ALL) == []
            assert execute(database_url, "SELECT * FROM echo_tasks WHERE id = 1") == before
            assert execute(database_url, "SELECT * FROM lora_foundry_tasks WHERE id = 1") == []
        (second,) = execute(database_url, "SELECT id FROM echo_tasks WHERE name = 'second'")
        await pipelines.cancel(store, second[0])
        assert execute(database_url, "SELECT * FROM echo_tasks WHERE id = 1") == before
        execute(database_url, "UPDATE echo_tasks SET status = 'completed' WHERE id = 1")
        ended = execute(database_url, "SELECT * FROM echo_tasks WHERE id = 1")
        assert (await one(store)).task.name == "first"
        assert execute(database_url, "SELECT * FROM echo_tasks WHERE id = 1") == ended

    run(database_url, scenario)


def test_whoever_is_cancelled_in_a_transaction_leaves_no_lock(database_url: str) -> None:
    async def scenario(store: TaskStore) -> None:
        await store.add(generation())
        held = await one(store)
        number, news = held.task.id or 0, {"stage": "train", "done": 1, "total": 2}

        async def write() -> None:
            while True:
                await store.report(number, held.lease, news)

        async def cancel_after(steps: int) -> None:
            writer = asyncio.create_task(write())
            for _ in range(steps):
                await asyncio.sleep(0)
            await asyncio.sleep(steps / 2000)
            writer.cancel()
            await asyncio.gather(writer, return_exceptions=True)

        for steps in range(60):
            await cancel_after(steps)
            async with asyncio.timeout(20):  # BUSY_SECONDS are 30
                assert await store.report(number, held.lease, news)

    run(database_url, scenario)


@pytest.mark.parametrize(
    "database_url", ["postgresql"], indirect=True
)  # a frozen process keeps SQLite's lock
def test_a_host_that_sleeps_in_a_transaction_holds_up_nobody_for_long(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lora_foundry.tasks.database.ASLEEP_SECONDS", 1)

    async def scenario(store: TaskStore) -> None:
        await store.add(generation())
        held = await one(store)
        number, news = held.task.id or 0, {"stage": "train", "done": 1, "total": 2}

        async def sleep_while(working: Coroutine[Any, Any, bool]) -> None:
            with database_errors(store.url):
                async with store.writing() as connection:
                    await connection.execute(sa.text("SELECT * FROM echo_tasks FOR UPDATE"))
                    await connection.execute(sa.text("SELECT * FROM lora_foundry_tasks FOR UPDATE"))
                    async with asyncio.timeout(20):
                        assert await working
                    await connection.execute(sa.text("SELECT 1"))

        async with opened(database_url) as other:
            with pytest.raises(BackendError, match="does not answer"):
                await sleep_while(other.report(number, held.lease, news))
        assert await store.report(number, held.lease, news)  # by a new connection

    run(database_url, scenario)


def test_two_workers_never_take_the_same_row(database_url: str) -> None:
    async def scenario(store: TaskStore) -> None:
        await store.add(*[generation(str(number)) for number in range(16)])
        async with opened(database_url) as other:
            takers = [admit(each, name, {"gpu": 4}) for name in "abcd" for each in (store, other)]
            taken = [each.task.id for batch in await asyncio.gather(*takers) for each in batch]
        rest = [each.task.id for each in await admit(store, "z", ALL)]
        assert len(taken + rest) == 16
        assert len(set(taken + rest)) == 16

    run(database_url, scenario)


def test_children_start_after_all_their_parents(database_url: str) -> None:
    async def scenario(store: TaskStore) -> None:
        first, second = await store.add(generation("1"), generation("2"))
        (child,) = await store.add(generation("child", dependencies=[first.id, second.uuid], priority=1))
        parents = await admit(store, "w", ALL)
        assert {each.task.name for each in parents} == {"1", "2"}
        await store.complete(parents[0].task.id or 0, parents[0].lease, {})
        assert await admit(store, "w", ALL) == []
        await store.complete(parents[1].task.id or 0, parents[1].lease, {})
        assert (await one(store)).task.id == child.id

    run(database_url, scenario)


def test_a_failed_parent_cancels_all_below_and_a_retry_brings_them_back(database_url: str) -> None:
    async def scenario(store: TaskStore) -> None:
        (top,) = await store.add(generation("top", max_retries=0))
        (middle,) = await store.add(generation("middle", dependencies=[top.uuid]))
        (bottom,) = await store.add(generation("bottom", dependencies=[middle.id]))
        admitted = await one(store)
        assert await store.fail(admitted.task, admitted.lease, Failure("no disk")) == "failed"
        assert await admit(store, "w", ALL) == []
        for task in (middle, bottom):
            found = await store.get(task.id or 0)
            assert found.status == "cancelled"
            assert "no disk" in (found.error or "")
        again = await pipelines.retry(store, Settings(), top.id or 0)
        assert {each.name for each in again} == {"top", "middle", "bottom"}
        with pytest.raises(InputError, match="pending already"):
            await pipelines.retry(store, Settings(), top.uuid)
        assert (await one(store)).task.name == "top"
        with pytest.raises(InputError, match="running"):
            await pipelines.retry(store, Settings(), top.id or 0)

    run(database_url, scenario)


def test_dependencies_that_can_never_hold_fail_the_task(database_url: str) -> None:
    async def scenario(store: TaskStore) -> None:
        missing, rubbish = await store.add(
            generation("m", dependencies=[999]), generation("r", dependencies={"a": 1})
        )
        (first,) = await store.add(generation("x", uuid="u1", dependencies=["u2"]))
        await store.add(
            generation("y", uuid="u2", dependencies=[first.id]),
            generation("z", uuid="u3", dependencies=["u3"]),
        )
        assert await admit(store, "w", ALL) == []
        for task, word in ((missing, "does not exist"), (rubbish, "JSON list"), (first, "circle")):
            found = await store.get(task.id or 0)
            assert found.status == "failed"
            assert word in (found.error or "")
        counts = await store.counts()
        assert counts["failed"] + counts["cancelled"] == 5

    run(database_url, scenario)


def test_a_foreign_queue_that_drops_uuids_still_resolves_dependencies(database_url: str) -> None:
    async def scenario(store: TaskStore) -> None:
        parent = json.dumps(GENERATION | {"task_uuid": "p-1"})
        child = json.dumps(GENERATION | {"task_uuid": "c-1"})
        sql = "INSERT INTO echo_tasks (name, task_type, payload, dependencies) VALUES "
        execute(database_url, f"{sql} ('p', 'LORA_GENERATION', '{parent}', '[]')")
        execute(database_url, f"{sql} ('c', 'LORA_GENERATION', '{child}', '[\"p-1\"]')")
        admitted = await one(store)
        assert admitted.task.name == "p"
        await store.complete(admitted.task.id or 0, admitted.lease, {})
        assert (await one(store)).task.name == "c"
        assert (await store.get("p-1")).status == "completed"

    run(database_url, scenario)


def test_only_the_holder_of_the_lease_writes(database_url: str) -> None:
    async def scenario(store: TaskStore) -> None:
        await store.add(generation())
        old = await one(store)
        number = old.task.id or 0
        assert await store.release(number, old.lease)
        new = await one(store)
        assert not await store.complete(number, old.lease, {"by": "zombie"})
        assert not await store.report(number, old.lease, {"done": 1})
        assert await store.fail(old.task, old.lease, Failure("late")) is None
        assert await store.complete(number, new.lease, {"by": "owner"})
        assert not await store.complete(number, new.lease, {"by": "again"})
        assert (await store.get(number)).result == {"by": "owner"}

    run(database_url, scenario)


def test_retries_are_counted_with_pauses_and_then_end(database_url: str) -> None:
    async def scenario(store: TaskStore) -> None:
        await store.add(generation(max_retries=2))
        for retries in (1, 2):
            admitted = await one(store)
            assert await store.fail(admitted.task, admitted.lease, Failure("oops")) == "retrying"
            found = await store.get(admitted.task.id or 0)
            assert (found.retries, found.error) == (retries, "oops")
            assert await admit(store, "w", ALL) == []  # the pause is not over
            execute(database_url, "UPDATE echo_tasks SET scheduled_for = '2001-01-01 00:00:00'")
        admitted = await one(store)
        assert await store.fail(admitted.task, admitted.lease, Failure("oops")) == "failed"
        assert (await store.get(admitted.task.id or 0)).completed_at is not None

    run(database_url, scenario)


@pytest.mark.parametrize(
    ("retries", "seconds"), [(0, 2), (1, 4), (2, 8), (5, 64), (7, 256), (8, 300), (50, 300)]
)
def test_pauses_double_up_to_a_limit_and_tasks_do_not_return_in_step(retries: int, seconds: float) -> None:
    drawn = [pause(retries) for _ in range(100)]
    assert all(0.75 * seconds <= each <= 1.25 * seconds for each in drawn)
    assert max(drawn) - min(drawn) > 0.2 * seconds


def test_an_error_of_any_length_is_one_short_line_in_the_row_and_its_childrens(database_url: str) -> None:
    async def scenario(store: TaskStore) -> None:
        (parent,) = await store.add(generation("parent", max_retries=0))
        (child,) = await store.add(generation("child", dependencies=[parent.id]))
        held = await one(store)
        await store.fail(
            held.task, held.lease, Failure("Traceback\n\0" + "line \ud800\n" * 1000, permanent=True)
        )
        for each in (parent, child):
            error = (await store.get(each.id or 0)).error or ""
            assert "Traceback" in error
            assert len(error) < 500
            assert not set("\n\0\ud800") & set(error)

    run(database_url, scenario)


def test_permanent_errors_are_not_retried_and_progress_burns_no_retry(database_url: str) -> None:
    async def scenario(store: TaskStore) -> None:
        await store.add(generation("bad"))
        admitted = await one(store)
        assert await store.fail(admitted.task, admitted.lease, Failure("never", permanent=True)) == "failed"
        await store.add(generation("slow", max_retries=0))
        for resumes in range(MAX_RESUMES):
            admitted = await one(store)
            assert (admitted.task.resumes, admitted.task.retries) == (resumes, 0)
            assert (
                await store.fail(admitted.task, admitted.lease, Failure("late", progressed=True)) == "pending"
            )
        admitted = await one(store)
        assert await store.fail(admitted.task, admitted.lease, Failure("late", progressed=True)) == "failed"

    run(database_url, scenario)


def test_scheduled_rows_wait_for_their_time(database_url: str) -> None:
    async def scenario(store: TaskStore) -> None:
        execute(
            database_url,
            "INSERT INTO echo_tasks (name, task_type, payload, scheduled_for) VALUES "
            f"('later', 'LORA_GENERATION', '{json.dumps(GENERATION)}', '2999-01-01 00:00:00'), "
            f"('now', 'LORA_GENERATION', '{json.dumps(GENERATION)}', '2001-01-01 00:00:00')",
        )
        assert (await one(store)).task.name == "now"

    run(database_url, scenario)


FOREIGN = [
    ("user_request", {"message": "draw me a LoRA", "character_name": "Elara"}),
    ("user_request", {"character_name": "Elara", "description": "a voice", "voice_id": 7}),
    ("user_request", {"task_type": "summarise", "character_name": "x", "description": "y"}),
    ("user_request", ["lora_generation"]),
    ("user_request", "lora_training"),
    ("user_request", None),
    ("monitoring", GENERATION),
    ("lora_generation_report", GENERATION),
    ("LORA", {}),
    ("", {}),
]


def test_a_table_full_of_foreign_rows_is_left_untouched(database_url: str) -> None:
    async def scenario(store: TaskStore) -> None:
        foreign = [
            Task(name=f"{kind} {number}", task_type=kind, payload=payload, dependencies=[10**6])
            for number in range(12)
            for kind, payload in FOREIGN
        ]
        await store.add(*foreign)
        execute(
            database_url,
            "UPDATE echo_tasks SET status = 'running', started_at = '2001-01-01' WHERE id IN (7, 14, 21)",
        )
        before = execute(database_url, "SELECT * FROM echo_tasks ORDER BY id")
        await store.add(
            generation("ours"), Task(name="hand", payload=GENERATION | {"character_name": "Hand"})
        )
        marked = Task(name="marked", payload={"type": "lora_training", "rubbish": 1})
        await store.add(marked)
        assert {each.task.name for each in await admit(store, "w", ALL)} == {"ours", "hand", "marked"}
        assert await reclaim(store, 0.0) != []
        assert await store.prune(timedelta(0), pipelines.is_ours) == 0
        after = execute(database_url, f"SELECT * FROM echo_tasks WHERE id <= {len(foreign)} ORDER BY id")
        assert after == before

    run(database_url, scenario)


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)  # PostgreSQL's types refuse it already
def test_rubbish_in_a_row_by_hand_is_read_without_a_crash(database_url: str) -> None:
    async def scenario(store: TaskStore) -> None:
        execute(
            database_url,
            "INSERT INTO echo_tasks (name, task_type, payload, created_at, dependencies, retries, timeout) "
            "VALUES ('x', 'LORA_GENERATION', '{not json', 'yesterday', '', 'many', 'long')",
        )
        admitted = await one(store)
        assert (admitted.task.payload, admitted.task.timeout, admitted.task.created_at) == (
            "{not json",
            300,
            None,
        )

    run(database_url, scenario)


def test_cancelling_waiting_and_running_tasks(database_url: str) -> None:
    async def scenario(store: TaskStore) -> None:
        (waiting,) = await store.add(generation("waiting"))
        assert [each.status for each in await pipelines.cancel(store, waiting.uuid)] == ["cancelled"]
        await store.add(generation("running"))
        admitted = await one(store)
        assert await store.cancel_requests([admitted.lease]) == set()
        assert [each.status for each in await pipelines.cancel(store, admitted.task.id or 0)] == ["running"]
        assert await store.cancel_requests([admitted.lease]) == {admitted.lease}
        assert await store.cancelled(admitted.task.id or 0, admitted.lease)
        assert (await store.counts())["cancelled"] == 2

    run(database_url, scenario)


def test_prune_deletes_only_what_ended_long_ago(database_url: str) -> None:
    async def scenario(store: TaskStore) -> None:
        await store.add(*[generation(str(number)) for number in range(3)])
        first, second, _ = await admit(store, "w", ALL)
        await store.complete(first.task.id or 0, first.lease, {})
        await store.complete(second.task.id or 0, second.lease, {})
        execute(database_url, f"UPDATE echo_tasks SET completed_at = '2001-01-01' WHERE id = {first.task.id}")
        ours, theirs = json.dumps(GENERATION), json.dumps({"message": "hello"})
        insert = "INSERT INTO echo_tasks (name, task_type, status, payload, completed_at) VALUES"
        execute(
            database_url,
            f"{insert} ('ours', 'user_request', 'completed', '{ours}', '2001-01-01')",
            f"{insert} ('theirs', 'user_request', 'completed', '{theirs}', '2001-01-01')",
            f"{insert} ('theirs', 'monitoring', 'completed', '{ours}', '2001-01-01')",
        )
        assert await store.prune(timedelta(days=7), pipelines.is_ours) == 2
        assert [each.name for each in await store.recent(limit=2)] == ["theirs", "theirs"]
        execute(database_url, "DELETE FROM echo_tasks WHERE name = 'theirs'")
        left = {each.id: each.status for each in await store.recent()}
        assert first.task.id not in left
        assert len(left) == 2
        assert set(left.values()) == {TaskStatus.COMPLETED, TaskStatus.RUNNING}

    run(database_url, scenario)
