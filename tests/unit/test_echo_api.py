"""The old producers' API without a database: names, places and defaults are the host's, enums of any class are taken."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from enum import Enum
from types import SimpleNamespace
from typing import Any

import pytest

from lora_foundry.compat import echo
from lora_foundry.compat.echo.queue import database_of
from lora_foundry.compat.echo.task import canonical, to_row
from lora_foundry.domain import task as domain
from lora_foundry.errors import BackendError, InputError

UPPER = "6F9619FF-8B86-D011-B42D-00CF4FC964FF"


class HostPriority(Enum):
    HIGH = 2
    LOW = 4
    DEFERRED = 7


class HostType(Enum):
    LORA_GENERATION = "LORA_GENERATION"
    MONITORING = "monitoring"


class HostStatus(Enum):
    PENDING = "pending"


class Full:
    """A host's queue whose third task is refused."""

    def __init__(self, room: int) -> None:
        self.room, self.taken = room, list[echo.Task]()

    async def add_task(self, task: echo.Task) -> bool:
        if len(self.taken) == self.room:
            return False
        self.taken.append(task)
        return True


def test_the_factories_make_the_contracts_tasks() -> None:
    generation = echo.create_lora_generation_task("Elara", "1girl")
    tagging = echo.create_lora_tagging_task("Elara", "Elara/images", ["a", "b"], "1girl")
    training = echo.create_lora_training_task("Elara", "Elara", "elara", network_dim=8)
    made = (generation, tagging, training)
    assert [task.priority for task in made] == [3, 3, 2]
    assert [task.timeout for task in made] == [3600, 300, 7200]
    assert [task.max_retries for task in made] == [2, 2, 1]
    assert all(task.payload["task_uuid"] == task.uuid == task.id for task in made)
    assert training.payload["network_dim"] == 8
    assert "epochs" not in training.payload  # what is not given is the recipe's choice


def test_a_task_is_complete_enough_for_a_queue_that_swallows_what_the_database_says() -> None:
    for task in (
        echo.create_lora_generation_task("Elara", "1girl"),
        echo.create_lora_tagging_task("Elara", "Elara/images", ["a"]),
        echo.create_lora_training_task("Elara", "Elara", "elara"),
        echo.Task(name="own"),
    ):
        assert isinstance(task.id, str)
        assert task.created_at.tzinfo is task.updated_at.tzinfo is UTC
        assert all(isinstance(each, Enum) for each in (task.task_type, task.priority, task.status))
        assert echo.Task.from_dict(task.to_dict()) == task


def test_places_and_names_are_the_hosts() -> None:
    generation = echo.create_lora_generation_task("Elara", "1girl", "Elara", "face.png", HostPriority.LOW)
    assert (generation.payload["output_dir"], generation.payload["reference_image"]) == ("Elara", "face.png")
    assert generation.priority is echo.TaskPriority.LOW
    tagging = echo.create_lora_tagging_task("Elara", "Elara", ["a"], "b", HostPriority.HIGH, UPPER)
    assert (tagging.priority, tagging.dependencies) == (2, [UPPER.lower()])
    training = echo.create_lora_training_task(
        "Elara", "Elara", "elara", "mini", 8, 4.0, 3, 1e-3, HostPriority.LOW, 7
    )
    numbers = ("base_model", "network_dim", "network_alpha", "epochs", "learning_rate")
    assert [training.payload[name] for name in numbers] == ["mini", 8, 4.0, 3, 1e-3]
    assert (training.priority, training.dependencies) == (4, [7])
    assert not {"priority", "depends_on", "dependencies"} & training.payload.keys()


@pytest.mark.parametrize("priority", [HostPriority.DEFERRED, 0, "high", None])
def test_a_priority_that_does_not_exist_is_refused(priority: Any) -> None:
    with pytest.raises(InputError, match="priorities are 1"):
        echo.create_lora_generation_task("Elara", "1girl", priority=priority)


def test_a_name_that_no_worker_would_take_makes_no_task() -> None:
    for make in (
        lambda: echo.create_lora_generation_task("x" * 100_000, "1girl"),
        lambda: echo.create_lora_tagging_task("a/b", "a", ["a"]),
        lambda: echo.create_lora_training_task("", "a", "a"),
    ):
        with pytest.raises(InputError):
            make()


@pytest.mark.parametrize("room", [0, 1, 2])
def test_a_pipeline_that_the_queue_refuses_is_an_error_and_no_ids(room: int) -> None:
    queue = Full(room)
    with pytest.raises(BackendError, match="refused") as caught:
        asyncio.run(echo.create_complete_lora_pipeline("Elara", "1girl", ["a"], "elara", queue))
    assert all(task.uuid in str(caught.value) for task in queue.taken)


def test_a_pipeline_in_a_hosts_queue_is_linked_by_uuids() -> None:
    queue = Full(3)
    ids = asyncio.run(echo.create_complete_lora_pipeline("Zoë K", "1girl", ["a", "b"], task_queue=queue))
    first, second, third = queue.taken
    assert [first.uuid, second.uuid, third.uuid] == [
        ids[f"{kind}_task_id"] for kind in ("generation", "tagging", "training")
    ]
    assert (first.dependencies, second.dependencies, third.dependencies) == ([], [first.uuid], [second.uuid])
    assert ids["output_name"] == third.payload["output_name"] == "zoë_k_lora"
    with pytest.raises(InputError, match="task_queue"):
        asyncio.run(echo.create_complete_lora_pipeline("Elara", "1girl", ["a"]))


def test_the_hosts_own_task_becomes_a_row() -> None:
    due = datetime(2026, 1, 2, 3, 4, 5)
    host = SimpleNamespace(
        id=UPPER, name="n", task_type=HostType.LORA_GENERATION, priority=HostPriority.LOW,
        status=HostStatus.PENDING, payload={"a": 1}, dependencies=[UPPER, 7], scheduled_for=due,
    )  # fmt: skip
    row = to_row(host)
    assert (row.uuid, row.task_type, row.priority, row.status) == (
        UPPER.lower(),
        "LORA_GENERATION",
        4,
        "pending",
    )
    assert row.dependencies == [UPPER.lower(), 7]
    assert row.scheduled_for == due.astimezone(UTC)  # a host's own times are local
    assert (row.timeout, row.max_retries) == (300, 3)
    host.task_type = HostType.MONITORING
    assert to_row(host).task_type == "monitoring"
    assert to_row(domain.Task("n", scheduled_for=due)).scheduled_for == due


def test_uuids_are_the_same_in_any_case_and_other_references_stay() -> None:
    assert canonical(UPPER) == UPPER.lower()
    assert canonical(17) == "17"
    assert canonical("X" * 36) == "X" * 36


def test_the_hosts_way_to_name_a_database() -> None:
    config = {"database": "echo_brain", "user": "p", "host": "h", "password": "a/b@c", "port": "5433"}
    assert database_of(config) == "postgresql://p:a%2Fb%40c@h:5433/echo_brain"
    with pytest.raises(InputError, match="port"):
        database_of({"port": "x"})
