"""Opens the task database, on SQLite or PostgreSQL, and brings its tables up to date without losing a row."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from sqlalchemy.dialects.sqlite.aiosqlite import AsyncAdapt_aiosqlite_connection
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, InterfaceError, OperationalError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from lora_foundry.errors import BackendError, FoundryError, InputError, StorageError
from lora_foundry.files.locks import waiting_lock
from lora_foundry.files.storage import make_folder

BUSY_SECONDS = 30
ASLEEP_SECONDS = 30
LOCK_SECONDS = 120.0
_FORMS = "sqlite:////folder/tasks.db or postgresql://user:password@host/database"
# SQLite's primary result codes, and PostgreSQL's SQLSTATEs.
_FULL = {sqlite3.SQLITE_FULL, "53100"}
_UNUSABLE = {
    *(sqlite3.SQLITE_READONLY, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM),
    *(sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, "25006", "58030"),
}


class Connection(sqlite3.Connection):
    """One that gives its locks back when it is closed. SQLite keeps a closed connection alive, and what it has locked, for
    as long as one of its statements is unfinished; that of a coroutine which was cancelled while it read is, until the
    garbage of that coroutine is collected, and nobody could write before."""

    def close(self) -> None:
        with suppress(sqlite3.Error):
            self.rollback()
        super().close()


def parse_url(url: str) -> sa.URL:
    """The URL with our drivers in it. Raises InputError for what is neither SQLite nor PostgreSQL."""
    prefix, _, path = url.partition(":///")
    if prefix in ("sqlite", "sqlite+aiosqlite") and path.strip() and path != ":memory:":
        return sa.URL.create(
            "sqlite+aiosqlite", database=path
        )  # a path may hold ?, % and #, which mean nothing here
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise InputError(f"The database address cannot be read; write it as {_FORMS}.") from error
    kind = parsed.get_backend_name()
    if kind in ("postgresql", "postgres"):
        return parsed.set(drivername="postgresql+psycopg")
    raise InputError(f"Tasks cannot be kept in {kind!r} of that form; write the address as {_FORMS}.")


def sync_url(url: sa.URL) -> sa.URL:
    """The same database for code that blocks."""
    return url.set(drivername="sqlite") if url.get_backend_name() == "sqlite" else url


def connect_arguments(url: sa.URL) -> dict[str, Any]:
    """Driver options: wait for a lock on SQLite; speak UTC, notice a dead server, and let go of a host that fell asleep
    in the middle of a transaction on PostgreSQL, where its locks would hold up every other host until it wakes."""
    if url.get_backend_name() == "sqlite":
        return {"timeout": BUSY_SECONDS, "factory": Connection}
    options = f"-c timezone=utc -c idle_in_transaction_session_timeout={ASLEEP_SECONDS}s"
    return {"options": options, "connect_timeout": 5, "prepare_threshold": None}


def open_engine(url: sa.URL) -> AsyncEngine:
    """An engine whose SQLite transactions take the write lock at once, so that two of them never deadlock."""
    if url.get_backend_name() != "sqlite":
        return create_async_engine(
            url, connect_args=connect_arguments(url), pool_pre_ping=True, pool_size=5, max_overflow=5
        )
    engine = create_async_engine(url, connect_args=connect_arguments(url))

    sa.event.listen(engine.sync_engine, "connect", on_sqlite_connect)

    @sa.event.listens_for(engine.sync_engine, "begin")
    def on_begin(connection: sa.Connection) -> None:
        reading = connection.get_execution_options().get("reading")
        connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")

    return engine


def on_sqlite_connect(
    connection: sqlite3.Connection | AsyncAdapt_aiosqlite_connection, record: object
) -> None:
    """Makes a new connection ready: transactions are begun by us, and every row can be read."""
    connection.isolation_level = None
    driver = connection if isinstance(connection, sqlite3.Connection) else connection.driver_connection
    driver.text_factory = readable
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=NORMAL")
    cursor.close()


def readable(text: bytes) -> str:
    """Text of SQLite, which keeps bytes that are no UTF-8 too: one such row must not stop the reading of others."""
    return text.decode("utf-8", "replace")


def is_lasting(error: BaseException) -> bool:
    """Whether no waiting helps against an error of the database: its disk is full, or its file cannot be used."""
    return _code_of(error) in _FULL | _UNUSABLE


def is_away(error: BaseException) -> bool:
    """Whether the database is busy, or does not answer any more: no statement's fault, and waiting may help."""
    return isinstance(error, OperationalError | InterfaceError | OSError) or (
        isinstance(error, DBAPIError) and error.connection_invalidated
    )


def database_error(error: DBAPIError, url: sa.URL) -> FoundryError:
    """What an error of the database means, and what to do."""
    said = " ".join(str(error.orig).split())[:200]
    place = url.database if url.get_backend_name() == "sqlite" else url.render_as_string(hide_password=True)
    if _code_of(error) in _FULL:
        return StorageError(
            f"The disk that holds the task database {place} is full; free some space and run the same command again."
        )
    if is_lasting(error):
        return StorageError(
            f"The task database {place} cannot be used ({said}); look at the file, its rights and its disk, or name "
            "another with LORA_FOUNDRY_DATABASE_URL."
        )
    return BackendError(
        f"The task database {place} does not answer ({said}); see that it can be reached and run the same command again."
    )


@contextmanager
def database_errors(url: sa.URL) -> Iterator[None]:
    """What the database raises, as one of our errors. A statement that it does not understand stays what it is, a fault
    of this program."""
    try:
        yield
    except DBAPIError as error:
        if is_away(error) or is_lasting(error):
            raise database_error(error, url) from error
        raise


def _code_of(error: BaseException) -> int | str | None:
    origin = getattr(error, "orig", None)
    code: int | None = getattr(origin, "sqlite_errorcode", None)
    state: str | None = getattr(origin, "sqlstate", None)
    return state if code is None else code & 0xFF


async def upgrade(url: sa.URL) -> None:
    """Creates our tables or adopts an existing `echo_tasks`; InputError for one that cannot be adopted."""
    if url.get_backend_name() == "sqlite":
        make_folder(Path(str(url.database)).absolute().parent)
    await asyncio.to_thread(_upgrade, sync_url(url))


def _upgrade(url: sa.URL) -> None:
    config = Config()
    config.set_main_option("script_location", "lora_foundry:tasks/migrations")
    engine = sa.create_engine(url, connect_args=connect_arguments(url), poolclass=sa.NullPool)
    sqlite = url.get_backend_name() == "sqlite"
    if sqlite:
        sa.event.listen(engine, "connect", on_sqlite_connect)
    try:
        with database_errors(url), alone(url), engine.connect() as connection:
            if sqlite:
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
            if sqlite:
                connection.exec_driver_sql("COMMIT")
            connection.commit()
    finally:
        engine.dispose()


@contextmanager
def alone(url: sa.URL) -> Iterator[None]:
    """Lets one process at a time make tables, ours and the engine's, of all that start at once."""
    if url.get_backend_name() == "sqlite":
        with waiting_lock(Path(f"{url.database}.lock")):
            yield
        return
    engine = sa.create_engine(url, connect_args=connect_arguments(url), poolclass=sa.NullPool)
    try:
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            # Asked again and again, not waited for: the engine makes indexes CONCURRENTLY, which waits for every
            # statement that began before, and one that waits for this lock would never end.
            until = time.monotonic() + LOCK_SECONDS
            while not connection.scalar(sa.text("SELECT pg_try_advisory_lock(740112)")):
                if time.monotonic() > until:
                    raise BackendError("Another process has been making the tables for minutes; try again.")
                time.sleep(0.1)
            yield
    finally:
        engine.dispose()
