"""What wakes a worker before its next poll: PostgreSQL's NOTIFY, a change of the SQLite file, or a hint from
Redis. All of these may fail without harm, since the worker also looks by itself."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
from collections.abc import Callable

import sqlalchemy as sa

from lora_foundry.tasks.database import sync_url

logger = logging.getLogger(__name__)
LOOK = 0.1
PAUSE = 1.0


async def watch(url: sa.URL, wake: Callable[[], None]) -> None:
    """Calls `wake` at each change of the tables, until cancelled."""
    if url.get_backend_name() == "sqlite":
        await _watch_file(str(url.database), wake)
    while True:
        try:
            await _listen(url, wake)
        except Exception as error:  # whatever ended the connection, it is tried again
            logger.warning("No notifications from the database: %s", error)
        await asyncio.sleep(PAUSE)


async def _watch_file(path: str, wake: Callable[[], None]) -> None:
    """SQLite counts the commits of others in `data_version`, which costs microseconds to read."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        seen = None
        while True:
            with contextlib.suppress(sqlite3.OperationalError):
                (version,) = connection.execute("PRAGMA data_version").fetchone()
                if version != seen:
                    seen = version
                    wake()
            await asyncio.sleep(LOOK)


async def _listen(url: sa.URL, wake: Callable[[], None]) -> None:
    import psycopg

    plain = sync_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    async with await psycopg.AsyncConnection.connect(plain, autocommit=True, connect_timeout=5) as connection:
        await connection.execute("LISTEN echo_tasks")
        wake()
        async for _ in connection.notifies():
            wake()
