"""Pipelines as one thing: submitted, listed, cancelled and done again, on SQLite and on PostgreSQL."""

from __future__ import annotations

from typing import Any

import pytest

from lora_foundry.domain.character import Character
from lora_foundry.domain.task import Task
from lora_foundry.errors import InputError, PermanentError
from lora_foundry.recipe_files import load_recipe
from lora_foundry.settings import Settings
from lora_foundry.tasks import pipelines
from lora_foundry.tasks.admission import admit
from lora_foundry.tasks.ledger import Failure, Ledger
from lora_foundry.tasks.payloads import prepare
from lora_foundry.tasks.pipelines import Pipeline, PipelineRequest
from tests.contract.test_ledger import ALL, execute, generation, one, run

SETTINGS = Settings()
STAGES = ["generate", "curate", "caption", "train", "evaluate", "publish"]


def request(**values: Any) -> PipelineRequest:
    character = Character(name="Elara", description="1girl, brown hair")
    return PipelineRequest(character=character, settings={"train": {"steps": 400}}, **values)


async def finish(ledger: Ledger, stages: int) -> None:
    """Completes the next rows one after another."""
    for _ in range(stages):
        admitted = await one(ledger)
        await ledger.complete(admitted.task.id or 0, admitted.ticket, {"by": "test"})


async def submitted(ledger: Ledger, **values: Any) -> Pipeline:
    return await pipelines.submit(ledger, SETTINGS, request(**values))


def statuses(pipeline: Pipeline) -> list[str]:
    return [stage.status for stage in pipeline.stages]


def test_a_pipeline_is_six_rows_whose_state_is_shown_as_one(database_url: str) -> None:
    async def scenario(ledger: Ledger) -> None:
        made = await submitted(ledger, output_name="elara_v2", creator="dashboard")
        assert [stage.stage for stage in made.stages] == STAGES
        assert (made.status, made.output_name, made.creator) == ("pending", "elara_v2", "dashboard")
        admitted = await one(ledger)
        await ledger.add(generation("single"))
        await ledger.report(
            admitted.task.id or 0, admitted.ticket, {"stage": "generate", "done": 3, "total": 40}
        )
        (seen,) = await pipelines.recent_pipelines(ledger)
        assert (seen.id, seen.status, seen.character) == (made.id, "running", "Elara")
        assert seen.stages[0].progress == {"stage": "generate", "done": 3, "total": 40}
        await ledger.fail(admitted.task, admitted.ticket, Failure("no model", permanent=True))
        await admit(ledger, "w", ALL)
        by_task = await pipelines.get_pipeline(ledger, seen.stages[2].task_id)
        assert by_task == await pipelines.get_pipeline(ledger, made.id)
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
    async def scenario(ledger: Ledger) -> None:
        with pytest.raises(PermanentError):
            await submitted(ledger, **values)
        assert await ledger.recent() == []

    run(database_url, scenario)


def test_a_recipe_of_ones_own_travels_in_the_payload(database_url: str) -> None:
    recipe = load_recipe("mini", ["train.rank=3", "seed=9", "name=own"])

    async def scenario(ledger: Ledger) -> None:
        made = await submitted(ledger, recipe=recipe.model_dump(mode="json"))
        assert made.recipe == "own"
        work = prepare("stage", (await ledger.get(made.stages[3].task_id)).payload, SETTINGS)
        assert work.run.recipe.train.steps == 400  # the request's settings lie over it
        assert work.run.recipe.model_copy(update={"train": recipe.train}) == recipe

    run(database_url, scenario)


def test_cancelling_a_pipeline_ends_what_waits_and_asks_for_what_runs(database_url: str) -> None:
    async def scenario(ledger: Ledger) -> None:
        made = await submitted(ledger)
        await finish(ledger, 1)
        running = (await admit(ledger, "w", {"gpu": 1}))[0]
        other = await submitted(ledger)
        assert len(await pipelines.cancel(ledger, made.id)) == 5
        assert await ledger.cancel_requests([running.ticket]) == {running.ticket}
        await ledger.cancelled(running.task.id or 0, running.ticket)
        ended = await pipelines.get_pipeline(ledger, made.id)
        assert (ended.status, statuses(ended)) == ("cancelled", ["completed", *["cancelled"] * 5])
        assert await pipelines.cancel(ledger, made.id) == []
        assert statuses(await pipelines.get_pipeline(ledger, other.id)) == ["pending"] * 6

    run(database_url, scenario)


def again(rows: list[Task]) -> list[str]:
    assert {row.status for row in rows} == {"pending"}
    assert {(row.retries, row.result, row.error) for row in rows} == {(0, None, None)}
    return [row.name.split()[0] for row in rows]


def test_a_failed_pipeline_goes_on_at_the_failed_stage(database_url: str) -> None:
    async def scenario(ledger: Ledger) -> None:
        made = await submitted(ledger)
        await finish(ledger, 3)
        admitted = await one(ledger)
        await ledger.fail(admitted.task, admitted.ticket, Failure("diverged", permanent=True))
        await admit(ledger, "w", ALL)
        assert again(await pipelines.retry(ledger, SETTINGS, made.id)) == STAGES[3:]
        assert (await one(ledger)).task.name == "train Elara"
        with pytest.raises(InputError, match="is running; cancel it first"):
            await pipelines.retry(ledger, SETTINGS, made.id, changes={"train.steps": 5})

    run(database_url, scenario)


def test_changed_settings_start_at_the_first_stage_that_they_concern(database_url: str) -> None:
    async def scenario(ledger: Ledger) -> None:
        made = await submitted(ledger)
        await finish(ledger, 6)
        with pytest.raises(InputError, match="--from STAGE"):
            await pipelines.retry(ledger, SETTINGS, made.id)
        with pytest.raises(InputError, match="trian"):
            await pipelines.retry(ledger, SETTINGS, made.id, changes={"trian": {"steps": 1}})
        with pytest.raises(InputError, match="not possible"):
            await pipelines.retry(ledger, SETTINGS, made.id, changes={"train.steps": -1})
        assert (await pipelines.get_pipeline(ledger, made.id)).status == "completed"
        rows = await pipelines.retry(ledger, SETTINGS, made.id, changes={"train.steps": 800})
        assert again(rows) == STAGES[3:]
        for stage in made.stages:  # one pipeline has one recipe
            work = prepare("stage", (await ledger.get(stage.task_id)).payload, SETTINGS)
            assert work.run.recipe.train.steps == 800
        await finish(ledger, 3)
        for changes, start, first in (
            ({"generate": {"steps": 4}}, None, 0),
            ({"seed": 7}, "train", 0),
            ({"train.rank": 2, "caption.quality_tags": []}, None, 2),
            ({}, "evaluate", 4),
        ):
            assert (
                again(await pipelines.retry(ledger, SETTINGS, made.id, changes=changes, start=start))
                == STAGES[first:]
            )
            await finish(ledger, 6 - first)
        with pytest.raises(InputError, match="no stage 'paint'"):
            await pipelines.retry(ledger, SETTINGS, made.id, start="paint")
        caption = made.stages[2].task_id
        assert again(await pipelines.retry(ledger, SETTINGS, caption)) == STAGES[2:]

    run(database_url, scenario)


def test_single_tasks_are_done_again_with_those_that_depend_on_them(database_url: str) -> None:
    async def scenario(ledger: Ledger) -> None:
        (parent,) = await ledger.add(generation("parent"))
        (child,) = await ledger.add(generation("child", dependencies=[parent.uuid]))
        await finish(ledger, 2)
        rows = await pipelines.retry(ledger, SETTINGS, parent.uuid, changes={"generate.steps": 3})
        assert again(rows) == ["parent", "child"]
        assert all(row.payload["settings"] == {"generate": {"steps": 3}} for row in rows)  # type: ignore[index]
        with pytest.raises(InputError, match="no pipeline"):
            await pipelines.retry(ledger, SETTINGS, child.uuid, start="train")
        with pytest.raises(InputError, match="no pipeline"):
            await pipelines.get_pipeline(ledger, child.uuid)

    run(database_url, scenario)


def test_rows_of_other_programs_are_neither_cancelled_nor_run_again(database_url: str) -> None:
    async def scenario(ledger: Ledger) -> None:
        execute(
            database_url,
            "INSERT INTO echo_tasks (name, task_type, status) VALUES ('theirs', 'monitoring', 'failed')",
            "INSERT INTO echo_tasks (name, task_type, payload) VALUES ('ask', 'user_request', '{\"message\": 1}')",
        )
        for number in (1, 2):
            with pytest.raises(InputError, match="another program's"):
                await pipelines.retry(ledger, SETTINGS, number)
            with pytest.raises(InputError, match="another program's"):
                await pipelines.cancel(ledger, number)
        with pytest.raises(InputError, match="no task"):
            await pipelines.retry(ledger, SETTINGS, "nobody")
        assert [task.status for task in await ledger.recent()] == ["pending", "failed"]

    run(database_url, scenario)
