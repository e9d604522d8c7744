"""What wakes a worker before its next poll: PostgreSQL's NOTIFY, a change of the SQLite file, or a hint from
Redis. All of these may fail without harm, since the worker also looks by itself. And what tells a page that a run has
changed."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
from collections.abc import Callable

import sqlalchemy as sa

from lora_foundry.domain.task import WAITING, TaskStatus
from lora_foundry.tasks.database import sync_url
from lora_foundry.tasks.schema import both, ours, shown_status, tasks
from lora_foundry.tasks.store import TaskStore

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


async def pulse(store: TaskStore) -> dict[str, str]:
    """A mark for each unfinished pipeline that differs whenever one of its rows does; cheap enough to ask often."""
    columns = (ours.c.pipeline, tasks.c.id, shown_status, tasks.c.updated_at, tasks.c.retries)
    unfinished = ours.c.pipeline.is_not(None) & ours.c.status.in_((*WAITING, TaskStatus.RUNNING))
    query = sa.select(*columns).select_from(both).where(unfinished).order_by(tasks.c.id)
    async with store.reading() as connection:
        rows = (await connection.execute(query)).all()
    marks: dict[str, str] = {}
    for pipeline, *rest in rows:
        marks[pipeline] = f"{marks.get(pipeline, '')} {rest}"
    return marks
