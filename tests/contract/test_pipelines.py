"""Pipelines as one thing: submitted, listed, cancelled and done again, on SQLite and on PostgreSQL."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from lora_foundry.domain.character import Character
from lora_foundry.domain.task import Task
from lora_foundry.errors import InputError, PermanentError
from lora_foundry.files.paths import RunPaths
from lora_foundry.recipe_files import load_recipe
from lora_foundry.settings import Settings
from lora_foundry.tasks import pipelines
from lora_foundry.tasks.payloads import prepare
from lora_foundry.tasks.pipelines import Pipeline, PipelineRequest
from lora_foundry.tasks.store import Failure, TaskStore
from tests.contract.taking import admit
from tests.contract.test_store import ALL, GENERATION, execute, generation, one, opened, run

pytestmark = pytest.mark.usefixtures("forked_children")

SETTINGS = Settings()
STAGES = ["generate", "curate", "caption", "train", "evaluate", "publish"]


def request(**values: Any) -> PipelineRequest:
    character = Character(name="Elara", description="1girl, brown hair")
    return PipelineRequest(character=character, settings={"train": {"steps": 400}}, **values)


async def finish(store: TaskStore, stages: int) -> None:
    """Completes the next rows one after another."""
    for _ in range(stages):
        admitted = await one(store)
        await store.complete(admitted.task.id or 0, admitted.lease, {"by": "test"})


async def submitted(store: TaskStore, **values: Any) -> Pipeline:
    return await pipelines.submit(store, SETTINGS, request(**values))


def statuses(pipeline: Pipeline) -> list[str]:
    return [stage.status for stage in pipeline.stages]


def test_a_pipeline_is_six_rows_whose_state_is_shown_as_one(database_url: str) -> None:
    async def scenario(store: TaskStore) -> None:
        made = await submitted(store, output_name="elara_v2", creator="dashboard")
        assert [stage.stage for stage in made.stages] == STAGES
        assert (made.status, made.output_name, made.creator) == ("pending", "elara_v2", "dashboard")
        admitted = await one(store)
        await store.add(generation("single"))
        await store.report(
            admitted.task.id or 0, admitted.lease, {"stage": "generate", "done": 3, "total": 40}
        )
        (seen,) = await pipelines.recent_pipelines(store)
        assert (seen.id, seen.status, seen.character) == (made.id, "running", "Elara")
        assert seen.stages[0].progress == {"stage": "generate", "done": 3, "total": 40}
        await store.fail(admitted.task, admitted.lease, Failure("no model", permanent=True))
        await admit(store, "w", ALL)
        by_task = await pipelines.get_pipeline(store, seen.stages[2].task_id)
        assert by_task == await pipelines.get_pipeline(store, made.id)
        assert (by_task.status, statuses(by_task)) == ("failed", ["failed", *["cancelled"] * 5])
        assert by_task.stages[0].error == "no model"

    run(database_url, scenario)


@pytest.mark.parametrize(
    "values",
    [
        {"recipe": "no such recipe"},
        {"output_name": "../up"},
        {"recipe": load_recipe("mini").model_dump(mode="json") | {"seed": -1}},
        {"recipe": {"name": "half"}},
        {"reference_image": "/nowhere/at/all.png"},
    ],
)
def test_what_no_worker_could_run_is_refused_with_nothing_written(
    database_url: str, values: dict[str, Any]
) -> None:
    async def scenario(store: TaskStore) -> None:
        with pytest.raises(PermanentError):
            await submitted(store, **values)
        assert await store.recent() == []

    run(database_url, scenario)


def test_a_recipe_of_ones_own_travels_in_the_payload(database_url: str) -> None:
    recipe = load_recipe("mini", ["train.rank=3", "seed=9", "name=own"])

    async def scenario(store: TaskStore) -> None:
        made = await submitted(store, recipe=recipe.model_dump(mode="json"))
        assert made.recipe == "own"
        work = prepare("stage", (await store.get(made.stages[3].task_id)).payload, SETTINGS)
        assert work.run.recipe.train.steps == 400  # the request's settings lie over it
        assert work.run.recipe.model_copy(update={"train": recipe.train}) == recipe

    run(database_url, scenario)


def test_cancelling_a_pipeline_ends_what_waits_and_asks_for_what_runs(database_url: str) -> None:
    async def scenario(store: TaskStore) -> None:
        made = await submitted(store)
        await finish(store, 1)
        running = (await admit(store, "w", {"gpu": 1}))[0]
        other = await submitted(store)
        assert len(await pipelines.cancel(store, made.id)) == 5
        assert await store.cancel_requests([running.lease]) == {running.lease}
        await store.cancelled(running.task.id or 0, running.lease)
        ended = await pipelines.get_pipeline(store, made.id)
        assert (ended.status, statuses(ended)) == ("cancelled", ["completed", *["cancelled"] * 5])
        assert await pipelines.cancel(store, made.id) == []
        assert statuses(await pipelines.get_pipeline(store, other.id)) == ["pending"] * 6

    run(database_url, scenario)


def again(rows: list[Task]) -> list[str]:
    assert {row.status for row in rows} == {"pending"}
    assert {(row.retries, row.result, row.error) for row in rows} == {(0, None, None)}
    return [row.name.split()[0] for row in rows]


def test_a_failed_pipeline_goes_on_at_the_failed_stage(database_url: str) -> None:
    async def scenario(store: TaskStore) -> None:
        made = await submitted(store)
        await finish(store, 3)
        admitted = await one(store)
        await store.fail(admitted.task, admitted.lease, Failure("diverged", permanent=True))
        await admit(store, "w", ALL)
        assert again(await pipelines.retry(store, SETTINGS, made.id)) == STAGES[3:]
        assert (await one(store)).task.name == "train Elara"
        with pytest.raises(InputError, match="is running; cancel it first"):
            await pipelines.retry(store, SETTINGS, made.id, changes={"train.steps": 5})

    run(database_url, scenario)


def test_changed_settings_start_at_the_first_stage_that_they_concern(database_url: str) -> None:
    async def scenario(store: TaskStore) -> None:
        made = await submitted(store)
        await finish(store, 6)
        with pytest.raises(InputError, match="--from STAGE"):
            await pipelines.retry(store, SETTINGS, made.id)
        with pytest.raises(InputError, match="trian"):
            await pipelines.retry(store, SETTINGS, made.id, changes={"trian": {"steps": 1}})
        with pytest.raises(InputError, match="not possible"):
            await pipelines.retry(store, SETTINGS, made.id, changes={"train.steps": -1})
        assert (await pipelines.get_pipeline(store, made.id)).status == "completed"
        rows = await pipelines.retry(store, SETTINGS, made.id, changes={"train.steps": 800})
        assert again(rows) == STAGES[3:]
        for stage in made.stages:  # one pipeline has one recipe
            work = prepare("stage", (await store.get(stage.task_id)).payload, SETTINGS)
            assert work.run.recipe.train.steps == 800
        await finish(store, 3)
        for changes, start, first in (
            ({"generate": {"steps": 4}}, None, 0),
            ({"seed": 7}, "train", 0),
            ({"train.rank": 2, "caption.quality_tags": []}, None, 2),
            ({}, "evaluate", 4),
        ):
            assert (
                again(await pipelines.retry(store, SETTINGS, made.id, changes=changes, start=start))
                == STAGES[first:]
            )
            await finish(store, 6 - first)
        with pytest.raises(InputError, match="no stage 'paint'"):
            await pipelines.retry(store, SETTINGS, made.id, start="paint")
        caption = made.stages[2].task_id
        assert again(await pipelines.retry(store, SETTINGS, caption)) == STAGES[2:]

    run(database_url, scenario)


def test_single_tasks_are_done_again_with_those_that_depend_on_them(database_url: str) -> None:
    async def scenario(store: TaskStore) -> None:
        (parent,) = await store.add(generation("parent"))
        (child,) = await store.add(generation("child", dependencies=[parent.uuid]))
        await finish(store, 2)
        rows = await pipelines.retry(store, SETTINGS, parent.uuid, changes={"generate.steps": 3})
        assert again(rows) == ["parent", "child"]
        assert all(row.payload["settings"] == {"generate": {"steps": 3}} for row in rows)  # type: ignore[index]
        with pytest.raises(InputError, match="no pipeline"):
            await pipelines.retry(store, SETTINGS, child.uuid, start="train")
        with pytest.raises(InputError, match="no pipeline"):
            await pipelines.get_pipeline(store, child.uuid)

    run(database_url, scenario)


def test_rows_of_other_programs_are_neither_cancelled_nor_run_again(database_url: str) -> None:
    async def scenario(store: TaskStore) -> None:
        execute(
            database_url,
            "INSERT INTO echo_tasks (name, task_type, status) VALUES ('theirs', 'monitoring', 'failed')",
            "INSERT INTO echo_tasks (name, task_type, payload) VALUES ('ask', 'user_request', '{\"message\": 1}')",
        )
        for number in (1, 2):
            with pytest.raises(InputError, match="another program's"):
                await pipelines.retry(store, SETTINGS, number)
            with pytest.raises(InputError, match="another program's"):
                await pipelines.cancel(store, number)
        with pytest.raises(InputError, match="no task"):
            await pipelines.retry(store, SETTINGS, "nobody")
        assert [task.status for task in await store.recent()] == ["pending", "failed"]

    run(database_url, scenario)


# Versions of a character, and who works in its folder ------------------------------------------------------------


def other(**values: Any) -> PipelineRequest:
    return request(**values).model_copy(
        update={"character": Character(name="Elara", description="1girl, blue hair")}
    )


def stands(settings: Settings, version: int, **values: Any) -> None:
    """As a run of that version, of the first request, leaves the character's folder."""
    asked = prepare("stage", pipelines.pipeline_tasks(request(**values))[0].payload, settings).run
    paths = RunPaths(asked.dataset_dir, "elara")
    paths.root.mkdir(parents=True, exist_ok=True)
    paths.run_file.write_text(asked.model_copy(update={"version": version}).model_dump_json())


@pytest.mark.parametrize(
    ("again", "same", "version"),
    [
        ("new", True, 3),
        ("new", False, 4),
        ("continue", False, 3),
        ("replace", False, 4),
        ("replace", True, 3),
    ],
)
def test_which_version_a_request_is_about(
    database_url: str, tmp_path: Path, again: str, same: bool, version: int
) -> None:
    settings = Settings(home=tmp_path)
    stands(settings, 3)

    async def scenario(store: TaskStore) -> None:
        asked = (request if same else other)(again=again)
        made = await pipelines.submit(store, settings, asked)
        assert made.version == version
        row = await store.get(made.stages[0].task_id)
        run = prepare("stage", row.payload, settings).run
        assert (run.version, run.dataset_dir.name) == (version, "Elara")
        assert run.replaces == (again == "replace" and not same)

    run(database_url, scenario)


def test_two_creates_of_one_character_at_once_are_two_versions_one_after_another(
    database_url: str, tmp_path: Path
) -> None:
    settings = Settings(home=tmp_path)

    async def scenario(store: TaskStore) -> None:
        async with opened(database_url) as second:
            made = await asyncio.gather(
                pipelines.submit(store, settings, request()), pipelines.submit(second, settings, other())
            )
        assert {each.version for each in made} == {1, 2}
        assert await pipelines.unfinished(store, request()) == next(
            each
            for each in await pipelines.recent_pipelines(store)
            if each.description == "1girl, brown hair"
        )
        order = []
        while taken := await admit(store, "w", ALL):
            (each,) = taken  # one attempt at a time works in the folder
            order.append(each.task.pipeline)
            await store.complete(each.task.id or 0, each.lease, {})
        assert sorted(order, key=order.index) == order, "whole pipelines at a time"
        assert len(order) == 12

    run(database_url, scenario)


def test_tasks_of_old_producers_that_belong_together_are_not_mixed(database_url: str) -> None:
    async def scenario(store: TaskStore) -> None:
        chains = []
        for number in range(2):
            (first,) = await store.add(
                generation(f"make {number}", payload=dict(GENERATION), priority=3 - number)
            )
            (then,) = await store.add(
                Task(name=f"train {number}", task_type="LORA_TRAINING", dependencies=[first.uuid], priority=3,
                     payload={"character_name": "Elara", "training_dir": "/data/Elara/images", "output_name": "e"})
            )  # fmt: skip
            chains.append((first.name, then.name))
        order = []
        while taken := await admit(store, "w", ALL):
            (each,) = taken
            order.append(each.task.name)
            await store.complete(each.task.id or 0, each.lease, {})
        assert order == [*chains[1], *chains[0]], "the more urgent one first, but whole"

    run(database_url, scenario)


def test_an_earlier_version_goes_on_in_its_own_folder(database_url: str, tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)

    async def scenario(store: TaskStore) -> None:
        made = await pipelines.submit(store, settings, request())
        admitted = await one(store)
        await store.fail(admitted.task, admitted.lease, Failure("no", permanent=True))
        stands(settings, 2)
        await pipelines.retry(store, settings, made.id)
        task = (await one(store)).task
        work = prepare("stage", task.payload, settings)
        assert work.run.dataset_dir == settings.datasets_dir / "Elara" / "versions" / "01"

    run(database_url, scenario)


# What retry and cancel do to a run, by what it is: the pipeline's status afterwards and the stages that are then pending.
RETRIES_AND_CANCELS = [
    ("finished", "retry", "refused", 0),
    ("finished", "retry from train", "running", 3),
    ("finished", "cancel", "completed", 0),
    ("finished", "retry from train, cancel", "completed", 0),
    ("finished", "retry from train, begin, cancel", "cancelled", 0),
    ("finished", "retry from train, begin, cancel, retry", "running", 3),
    ("failed", "retry", "running", 3),
    ("failed", "cancel", "failed", 0),
    ("failed", "retry, cancel", "cancelled", 0),
    ("waiting", "retry", "refused", 6),
    ("waiting", "cancel", "cancelled", 0),
    ("waiting", "cancel, retry", "pending", 6),
]


@pytest.mark.parametrize(("state", "does", "status", "pending"), RETRIES_AND_CANCELS)
def test_what_retry_and_cancel_do(
    database_url: str, state: str, does: str, status: str, pending: int
) -> None:
    async def scenario(store: TaskStore) -> None:
        made = await submitted(store)
        if state != "waiting":
            await finish(store, 3 if state == "failed" else 6)
        if state == "failed":
            admitted = await one(store)
            await store.fail(admitted.task, admitted.lease, Failure("diverged", permanent=True))
        before = await pipelines.get_pipeline(store, made.id)
        refused = False
        for step in does.split(", "):
            if step == "begin":
                running = await one(store)
            elif step == "cancel":
                await pipelines.cancel(store, made.id)
                if "begin" in does:
                    await store.cancelled(running.task.id or 0, running.lease)
            else:
                try:
                    start = step.removeprefix("retry").removeprefix(" from ") or None
                    await pipelines.retry(store, SETTINGS, made.id, start=start)
                except InputError:
                    refused = True
        now = await pipelines.get_pipeline(store, made.id)
        assert refused == (status == "refused")
        assert (before.status if refused else now.status) == (before.status if refused else status)
        assert statuses(now).count("pending") == pending
        if (state, status) == ("finished", "completed"):
            assert now == before, "as it was, results and times included"

    run(database_url, scenario)
