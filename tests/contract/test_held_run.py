"""A row holds the run that it asks for, resolved once: its attempts all do the same, whatever happens to recipe files
meanwhile, and what somebody wrote there by hand is checked like a payload."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lora_foundry.domain.task import TaskType
from lora_foundry.errors import InputError
from lora_foundry.recipe_files import load_recipe
from lora_foundry.settings import Settings
from lora_foundry.tasks import pipelines
from lora_foundry.tasks.attempts import Admitted
from lora_foundry.tasks.payloads import held_run, place, plain_run, resolve
from lora_foundry.tasks.store import Failure, TaskStore
from tests.contract.test_pipelines import request
from tests.contract.test_store import GENERATION, execute, generation, one, run
from tests.contract.test_worker import order, settings, until, work

pytestmark = pytest.mark.usefixtures("forked_children")

__all__ = ["settings"]


def own_recipe(settings: Settings, rank: int) -> None:
    folder = settings.recipe_folders[0]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "mine.toml").write_text(f'extends = "mini"\nname = "mine"\n\n[train]\nrank = {rank}\n')


def rank_of(admitted: Admitted, settings: Settings) -> int:
    held = held_run(admitted.run)
    assert held is not None
    return place(admitted.kind, admitted.task.payload, held, settings).run.recipe.train.rank


def test_every_attempt_and_stage_does_what_was_asked_when_it_was_asked(
    database_url: str, settings: Settings
) -> None:
    own_recipe(settings, 6)

    async def scenario(store: TaskStore) -> None:
        made = await pipelines.submit(store, settings, request(recipe="mine"))
        first = await one(store)
        own_recipe(settings, 9)
        assert rank_of(first, settings) == 6
        await store.release(first.task.id or 0, first.lease)
        again = await one(store)
        assert rank_of(again, settings) == 6
        await store.complete(again.task.id or 0, again.lease, {})
        second = await one(store)
        assert rank_of(second, settings) == 6
        await store.fail(second.task, second.lease, Failure("no", permanent=True))
        await pipelines.retry(store, settings, made.id)
        assert rank_of(await one(store), settings) == 9, "who asks again asks for what the recipe says now"

    run(database_url, scenario)


def test_a_recipe_file_that_is_gone_stops_no_run_that_was_asked_for(
    database_url: str, settings: Settings
) -> None:
    own_recipe(settings, 6)

    async def scenario(store: TaskStore) -> None:
        await pipelines.submit(store, settings, request(recipe="mine"))
        (settings.recipe_folders[0] / "mine.toml").unlink()
        assert rank_of(await one(store), settings) == 6

    run(database_url, scenario)


def test_a_row_of_another_producer_is_resolved_when_it_begins_and_then_held(
    database_url: str, settings: Settings
) -> None:
    own_recipe(settings, 6)

    async def scenario(store: TaskStore, _: Any) -> None:
        task = order("old", "sleep 0")
        assert isinstance(task.payload, dict)
        task.payload["recipe"] = "mine"
        (added,) = await store.add(task)
        done = await until(store, added, "completed")
        assert done.payload == task.payload, "the payload stays as it was written"

    work(database_url, settings, scenario)
    ((text,),) = execute(database_url, "SELECT run FROM lora_foundry_tasks")
    held = held_run(text if isinstance(text, dict) else json.loads(text))
    assert held is not None
    assert (held.recipe.train.rank, held.character.name, held.dataset_dir) == (6, "old", Path("old"))


def test_what_this_version_cannot_read_is_resolved_anew(database_url: str) -> None:
    async def scenario(store: TaskStore) -> None:
        (task,) = await store.add(generation())
        first = await one(store)
        await store.hold(task.id or 0, first.lease, {"character": {"name": 3}, "of": "another version"})
        await store.release(task.id or 0, first.lease)
        assert held_run((await one(store)).run) is None

    run(database_url, scenario)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"dataset_dir": "../elsewhere"}, "is not a folder inside"),
        ({"dataset_dir": "/etc"}, "is not a folder inside"),
        ({"output_name": "../up"}, "name"),
        ({"reference": "/etc/hostname"}, "is no file inside"),
        ({"base": "/etc/base.safetensors"}, "requests may name nothing else"),
    ],
)
def test_a_held_run_by_hand_leaves_no_folder_of_the_settings(
    settings: Settings, change: dict[str, str], said: str
) -> None:
    payload = GENERATION | {"recipe": "mini"}
    plain = plain_run(resolve("generation", payload, settings))
    match change:
        case {"reference": path}:
            plain["character"] |= {"reference_image": path}
        case {"base": path}:
            recipe = load_recipe("mini", [f"model.base={json.dumps(path)}"])
            plain["recipe"] = recipe.model_dump(mode="json")
        case _:
            plain |= change
    held = held_run(plain)
    assert held is not None
    with pytest.raises(InputError, match=said):
        place("generation", payload, held, settings)


def test_a_held_run_names_no_folder_of_the_host_that_asked(database_url: str, tmp_path: Path) -> None:
    here, there = Settings(home=tmp_path / "here"), Settings(home=tmp_path / "there")

    async def scenario(store: TaskStore) -> None:
        await pipelines.submit(store, here, request())
        admitted = await one(store)
        held = held_run(admitted.run)
        assert held is not None
        assert str(tmp_path) not in held.model_dump_json()
        placed = place(admitted.kind, admitted.task.payload, held, there).run
        assert placed.dataset_dir == (there.datasets_dir / "Elara").resolve()
        assert placed.lora_dir == there.loras_dir

    run(database_url, scenario)


def test_a_table_from_before_gets_the_column_and_its_rows_go_on(database_url: str) -> None:
    async def scenario(store: TaskStore) -> None:
        (task,) = await store.add(generation())
        execute(
            database_url,
            "ALTER TABLE lora_foundry_tasks DROP COLUMN run",
            "UPDATE lora_foundry_version SET version_num = '0003'",
        )
        await store.upgrade()
        admitted = await one(store)
        assert (admitted.task.id, admitted.run, task.task_type) == (task.id, None, TaskType.LORA_GENERATION)

    run(database_url, scenario)
