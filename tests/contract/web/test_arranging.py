"""The order of what waits, through the API: a run put first is taken first, a paused one is not taken until it is resumed."""

from __future__ import annotations

import sqlalchemy as sa
from fastapi.testclient import TestClient

from lora_foundry.settings import Settings
from tests.contract.test_store import execute
from tests.contract.web.conftest import ELARA


def shared_rows(settings: Settings) -> list[tuple[int, str | None]]:
    """Priority and time of every row, as another program reads them."""
    engine = sa.create_engine(settings.task_database)
    with engine.connect() as connection:
        rows = connection.execute(sa.text("SELECT priority, scheduled_for FROM echo_tasks ORDER BY id")).all()
    engine.dispose()
    return [(row[0], row[1]) for row in rows]


def test_a_run_is_put_first_paused_and_resumed(client: TestClient, pipeline: str, settings: Settings) -> None:
    client.post("/api/v1/pipelines", json=ELARA | {"name": "Mira"})
    assert client.get(pipeline).json()["priority"] == 3
    first = client.patch(pipeline, json={"priority": 1}).json()
    assert (first["priority"], first["paused"]) == (1, False)
    assert [priority for priority, _ in shared_rows(settings)] == [1] * 6 + [3] * 6

    assert client.patch(pipeline, json={"paused": True}).json()["paused"]
    assert [str(time)[:4] for _, time in shared_rows(settings)] == ["9999"] * 6 + ["None"] * 6
    assert "Resume" in client.get(pipeline).json()["waits_for"]
    assert not client.patch(pipeline, json={"paused": False}).json()["paused"]
    assert {time for _, time in shared_rows(settings)} == {None}


def test_only_what_waits_is_arranged(client: TestClient, pipeline: str, settings: Settings) -> None:
    row = client.get(pipeline).json()["stages"][0]["task_id"]
    for table in ("echo_tasks", "lora_foundry_tasks"):
        execute(settings.task_database, f"UPDATE {table} SET status = 'running' WHERE id = {row}")
    client.patch(pipeline, json={"priority": 1, "paused": True})
    assert [priority for priority, _ in shared_rows(settings)] == [3] + [1] * 5
    client.post(f"{pipeline}/cancel")
    for table in ("echo_tasks", "lora_foundry_tasks"):
        execute(settings.task_database, f"UPDATE {table} SET status = 'cancelled' WHERE id = {row}")
    refused = client.patch(pipeline, json={"priority": 1})
    assert refused.status_code == 422
    assert "nothing to arrange" in refused.json()["detail"]
    assert client.patch(pipeline, json={"priority": 9}).status_code == 422
