"""Redis, where there is one: producers push ids to `echo_tasks:1` .. `:5` so that workers look at once. A
hint is only a reason to look; the table says what is to be done, so nothing that happens to Redis can lose or
invent a task."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, cast

from lora_foundry.extras import missing_package
from lora_foundry.tasks.store import TaskStore

logger = logging.getLogger(__name__)
LISTS = tuple(f"echo_tasks:{priority}" for priority in range(1, 6))
PAUSE = 1.0


class RedisHints:
    """Drains the lists, the most urgent first."""

    def __init__(self, url: str, store: TaskStore) -> None:
        _redis()  # a worker without the package is refused at its start
        self._url, self._store = url, store
        self.known = 0
        self.dropped = 0

    async def watch(self, wake: Callable[[], None]) -> None:
        """Calls `wake` for every hint, until cancelled. A Redis that is away is asked again each second."""
        redis = _redis()
        complained = False
        while True:
            try:
                async with redis.asyncio.Redis.from_url(self._url, socket_connect_timeout=2) as client:
                    while True:
                        popped = await client.brpop(list(LISTS), timeout=5)
                        if popped is not None:
                            await self._weigh(cast(bytes, popped[1]), wake)
                            complained = False
            except redis.exceptions.TimeoutError:
                continue
            except (redis.exceptions.RedisError, OSError) as error:
                if not complained:
                    logger.warning("No hints from Redis, the table is looked at instead: %s", error)
                complained = True
                await asyncio.sleep(PAUSE)

    async def _weigh(self, hint: bytes, wake: Callable[[], None]) -> None:
        wake()
        text = hint[:100].decode("utf-8", "replace").replace("\0", "")
        if await self._store.find(text) is None:
            self.dropped += 1
            logger.info("Dropped a hint that is no task: %r (%d so far)", text, self.dropped)
        else:
            self.known += 1


async def push(url: str, priority: int, reference: str) -> bool:
    """A producer's hint; False where Redis cannot be reached, which costs nothing but a second."""
    redis = _redis()
    try:
        async with redis.asyncio.Redis.from_url(url, socket_connect_timeout=2, socket_timeout=2) as client:
            await client.lpush(f"echo_tasks:{min(max(priority, 1), 5)}", reference)
    except (redis.exceptions.RedisError, OSError):
        return False
    return True


def _redis() -> Any:
    """The package. Raises MissingExtraError."""
    try:
        import redis.asyncio
    except ImportError as error:
        raise missing_package("LORA_FOUNDRY_REDIS_URL", error) from error
    return redis
