"""What a person types to name a task or a run, on SQLite and on PostgreSQL."""

from __future__ import annotations

from typing import Any

import pytest

from lora_foundry.errors import InputError
from lora_foundry.tasks.references import named, named_task
from lora_foundry.tasks.store import TaskStore
from tests.contract.test_store import generation, run

RUN, OTHER = "714d7c90-aaaa-4bbb-8ccc-000000000001", "714d0000-aaaa-4bbb-8ccc-000000000002"


def row(uuid: str, pipeline: str | None, character: str) -> Any:
    task = generation(character)
    task.uuid, task.pipeline = uuid, pipeline
    return task


def test_a_beginning_that_is_unique_or_a_name_stands_for_the_whole(database_url: str) -> None:
    async def scenario(store: TaskStore) -> None:
        first, second, third = await store.add(
            row("e1000000-aaaa-4bbb-8ccc-000000000001", RUN, "Elara"),
            row("e2000000-aaaa-4bbb-8ccc-000000000002", RUN, "Elara"),
            row("e3000000-aaaa-4bbb-8ccc-000000000003", OTHER, "Kai"),
        )
        for typed in ("714d7", "714D7C90", RUN, "elara"):
            assert await named(store, typed) == RUN, typed
        assert await named(store, "Kai") == OTHER
        assert await named(store, "e300") == third.uuid == await named_task(store, "e3000000")
        assert await named(store, str(second.id)) == str(second.id)  # a whole id is never a beginning
        with pytest.raises(
            InputError, match=f"may be any of 2.*{RUN}.*{OTHER}|may be any of 2.*{OTHER}.*{RUN}"
        ):
            await named(store, "714d")
        for unknown in ("714", "714d7c91", "e_00", "%%%%", "Nobody", "half \udc80"):
            with pytest.raises(InputError, match=r"There is no task or run .*tasks pipelines.*tasks list"):
                await named(store, unknown)
        with pytest.raises(InputError, match=rf"several tasks.*{first.id} \(Elara"):
            await named_task(store, "714d7")

    run(database_url, scenario)
