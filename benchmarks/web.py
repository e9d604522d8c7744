"""How quick the web server is with 200 runs of 40 pictures, and what 50 open event streams cost a worker.

python benchmarks/web.py lists       milliseconds of each page and list, over a real connection
python benchmarks/web.py streams     seconds of a worker's task without and with 50 streams, in turns
... --save                           also writes benchmarks/results/web_lists.json or web_streams.json
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import psutil
import requests
from PIL import Image

from benchmarks.common import finish, table
from lora_foundry.domain.character import Character
from lora_foundry.domain.picture_plan import plan_pictures
from lora_foundry.domain.task import TaskStatus
from lora_foundry.files.images import save_picture
from lora_foundry.files.paths import RunPaths
from lora_foundry.recipe_files import load_recipe
from lora_foundry.settings import Settings
from lora_foundry.tasks.pipelines import PipelineRequest, get_pipeline, pipeline_tasks
from lora_foundry.tasks.store import Failure, TaskStore
from lora_foundry.tasks.worker import Worker, WorkerOptions

RUNS, IMAGES, SIZE = 200, 40, 768
STREAMS, STEPS, ROUNDS = 50, 100, 12
JOB = "benchmarks.web_job:compute"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("lists", "streams"))
    parser.add_argument("--save", action="store_true")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(home=Path(folder) / "home")
        (lists if chosen.what == "lists" else streams)(settings, chosen.save)


# Lists ------------------------------------------------------------------------------------------------------------


def lists(settings: Settings, save: bool) -> None:
    """Every page and list, first as a server that has just started answers, then again and again."""
    ids = asyncio.run(fill(settings, RUNS))
    paint(settings, RUNS)
    one = f"/api/v1/pipelines/{ids[-1]}"
    picture = f"{one}/dataset/run_{RUNS - 1:03d}_001.png"
    targets = {
        "page: pipelines": "/",
        "page: one run": f"/pipelines/{ids[-1]}",
        "page: dataset": f"/pipelines/{ids[-1]}/dataset",
        "50 pipelines": "/api/v1/pipelines?limit=50",
        "200 pipelines": "/api/v1/pipelines?limit=200",
        "search": "/api/v1/pipelines?q=run+1&status=completed",
        "one pipeline": one,
        "dataset of 40": f"{one}/dataset",
        "thumbnail": f"{picture}/thumbnail?size=256",
        "picture": picture,
        "100 tasks": "/api/v1/tasks?limit=100",
        "system": "/api/v1/system",
        "metrics": "/metrics",
    }
    rows: list[tuple[str, float, float, float, int]] = []
    with served(settings) as (address, process), requests.Session() as session:
        for name, path in targets.items():
            times, size = timed(session, address + path, 40)
            rows.append((name, times[0], statistics.median(times[1:]), percentile(times[1:], 95), size))
        gallery = gallery_seconds(session, address + one)
        memory = process.memory_info().rss / 2**20
    print(f"{RUNS} runs of {IMAGES} pictures of {SIZE} px; milliseconds")
    table(("what", "first", "median", "95 %", "bytes"), rows)
    print(
        f"a gallery of {IMAGES} thumbnails that nobody has asked for: {gallery * 1000:.0f} ms; server: {memory:.0f} MiB"
    )
    figures = {"slowest_median_ms": round(max(row[2] for row in rows), 1),
               "slowest_first_ms": round(max(row[1] for row in rows), 1),
               "gallery_ms": round(gallery * 1000), "server_mib": round(memory)}  # fmt: skip
    details = [
        dict(zip(("what", "first_ms", "median_ms", "p95_ms", "bytes"), row, strict=True)) for row in rows
    ]
    finish("web_lists", figures, {"runs": RUNS, "images": IMAGES, "requests": details}, save)


def timed(session: requests.Session, address: str, count: int) -> tuple[list[float], int]:
    """Milliseconds of `count` requests, one after another, and the answer's size."""
    times = []
    for _ in range(count):
        started = time.perf_counter()
        answer = session.get(address, timeout=60)
        times.append((time.perf_counter() - started) * 1000)
        answer.raise_for_status()
    return times, len(answer.content)


def gallery_seconds(session: requests.Session, pipeline: str) -> float:
    """Until all thumbnails of a set are there, in a size that nobody has asked for."""
    pictures = session.get(f"{pipeline}/dataset", timeout=60).json()["images"]
    base = pipeline.split("/api/", maxsplit=1)[0]
    started = time.perf_counter()
    for each in pictures:
        session.get(base + each["url"].replace("?", "/thumbnail?size=512&"), timeout=60).raise_for_status()
    return time.perf_counter() - started


def percentile(values: Sequence[float], share: int) -> float:
    return statistics.quantiles(values, n=100)[share - 1]


async def fill(settings: Settings, runs: int) -> list[str]:
    """Pipelines in every state: most completed, some failed, some waiting, one running."""
    store = TaskStore(settings.task_database)
    await store.upgrade()
    ids = []
    for number in range(runs):
        character = Character(name=f"Run {number:03d}", description="1girl, brown hair, red dress")
        rows = pipeline_tasks(PipelineRequest(character=character, recipe="sd15"))
        await store.add(*rows)
        ids.append(rows[0].pipeline or "")
        ended = 6 if number % 4 else number % 6
        for row in rows[:ended]:
            await settle(store, row.id or 0, "completed")
        if number % 8 == 0 and ended < 6:
            await settle(store, rows[ended].id or 0, "failed")
    await store.close()
    return ids


async def settle(store: TaskStore, number: int, status: str) -> None:
    """A row as a worker would have left it."""
    from sqlalchemy import text

    shared = "UPDATE echo_tasks SET status='running', started_at='2026-01-01 10:00:00.000' WHERE id=:id"
    beside = "UPDATE lora_foundry_tasks SET status='running', lease='t', queue=NULL WHERE id=:id"
    async with store.writing() as connection:
        for sql in (shared, beside):
            await connection.execute(text(sql), {"id": number})
    if status == "completed":
        await store.report(number, "t", {"stage": "train", "done": 40, "total": 40, "unit": "image"})
        await store.complete(number, "t", {"stages": {}})
    else:
        await store.fail(await store.get(number), "t", Failure("The GPU ran out of memory.", permanent=True))


def paint(settings: Settings, runs: int) -> None:
    """A set for every run; the pictures are real, and shared by hard links."""
    recipe = load_recipe("sd15", [f"generate.images={IMAGES}", "model.base=mini"])
    plan = plan_pictures(Character(name="Run 000", description="1girl"), recipe, "painted")
    first = RunPaths(settings.datasets_dir / "Run 000", "run_000")
    random = np.random.default_rng(1)
    slope = np.linspace(0, 200, SIZE)[None, :, None] + np.zeros((SIZE, SIZE, 3))
    for index in range(IMAGES):
        noise = random.integers(0, 12, (SIZE, SIZE, 3))
        picture = Image.fromarray((slope + noise + index).astype(np.uint8))
        save_picture(first.image(index), picture, plan.record(index))
        first.caption(first.image(index)).write_text(f"run, tag {index % 7}, high quality\n")
    for number in range(1, runs):
        paths = RunPaths(settings.datasets_dir / f"Run {number:03d}", f"run_{number:03d}")
        paths.images.mkdir(parents=True)
        for index in range(IMAGES):
            os.link(first.image(index), paths.image(index))
            os.link(first.caption(first.image(index)), paths.caption(paths.image(index)))


@contextlib.contextmanager
def served(settings: Settings) -> Iterator[tuple[str, psutil.Process]]:
    """`lora-foundry serve` in a process of its own: its address and the process."""
    command = (sys.executable, "-m", "lora_foundry", "serve", "--port", "0", "--home", str(settings.home))
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        address = process.stdout.readline().split()[1]
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            with contextlib.suppress(requests.ConnectionError):
                requests.get(f"{address}/api/v1/health", timeout=20)
                break
        yield address, psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(20)


# Streams ----------------------------------------------------------------------------------------------------------


def streams(settings: Settings, save: bool) -> None:
    """The same task without and with open streams, in pairs whose order alternates, by a worker on the same table as
    the server. The figure is the median of the pairs' ratios, since a shared machine drifts."""
    taken: dict[int, list[float]] = {0: [], STREAMS: []}
    spent: dict[int, list[float]] = {0: [], STREAMS: []}
    events = 0
    with served(settings) as (address, process):
        for number in range(ROUNDS):
            for count in (0, STREAMS) if number % 2 else (STREAMS, 0):
                with listeners(address, count) as counted:
                    before, started = sum(process.cpu_times()[:2]), time.perf_counter()
                    taken[count].append(asyncio.run(one_task(settings)))
                    wall = time.perf_counter() - started
                    spent[count].append((sum(process.cpu_times()[:2]) - before) / wall)
                    events += counted()
    ratios = [after / before for before, after in zip(taken[0], taken[STREAMS], strict=True)]
    own_noise = [after / before for before, after in itertools.pairwise(taken[0])]
    rows = [(count, min(times), *statistics.quantiles(times, n=4), f"{statistics.median(spent[count]):.1%}")
            for count, times in taken.items()]  # fmt: skip
    table(("streams", "least s", "25 %", "median", "75 %", "server's share of a core"), rows)
    quartiles, noise = statistics.quantiles(ratios, n=4), statistics.quantiles(own_noise, n=4)
    print(f"{events} events arrived. With {STREAMS} streams a task takes {quartiles[1] - 1:+.1%} (half of the pairs "
          f"between {quartiles[0] - 1:+.1%} and {quartiles[2] - 1:+.1%}); without any, the next task takes "
          f"{noise[0] - 1:+.1%} to {noise[2] - 1:+.1%}")  # fmt: skip
    figures = {"slower": round(quartiles[1] - 1, 4), "noise": [round(noise[0] - 1, 4), round(noise[2] - 1, 4)],
               "server_core_share": round(statistics.median(spent[STREAMS]), 4)}  # fmt: skip
    finish("web_streams", figures, {"streams": STREAMS, "task_seconds": {str(k): v for k, v in taken.items()},
                                    "server_core_shares": {str(k): v for k, v in spent.items()}}, save)  # fmt: skip


async def one_task(settings: Settings) -> float:
    """Seconds that a child needed for its arithmetic."""
    store = TaskStore(settings.task_database)
    await store.upgrade()
    character = Character(name="Counter", description=f"steps {STEPS}")
    first = pipeline_tasks(PipelineRequest(character=character, recipe="mini"))[0]
    await store.add(first)
    stop = asyncio.Event()
    worker = asyncio.create_task(Worker(store, settings, WorkerOptions(JOB)).run(stop))
    while (await store.get(first.id or 0)).status != TaskStatus.COMPLETED:
        await asyncio.sleep(0.5)
    result = (await store.get(first.id or 0)).result
    assert isinstance(result, dict)
    await get_pipeline(store, first.pipeline or "")
    stop.set()
    await worker
    await store.close()
    return float(result["seconds"])


@contextlib.contextmanager
def listeners(address: str, count: int) -> Iterator[object]:
    """A process with `count` open streams; call what is given for the number of events that came."""
    code = (
        "import asyncio, sys\n"
        "async def one(host, port, got):\n"
        "    reader, writer = await asyncio.open_connection(host, port, limit=2**22)\n"
        "    writer.write(f'GET /api/v1/events HTTP/1.1\\r\\nhost: {host}:{port}\\r\\n\\r\\n'.encode())\n"
        "    async for line in reader:\n"
        "        got[0] += line.startswith(b'event: pipeline')\n"
        "async def main():\n"
        "    got = [0]\n"
        "    host, port = sys.argv[1], int(sys.argv[2])\n"
        "    tasks = [asyncio.create_task(one(host, port, got)) for _ in range(int(sys.argv[3]))]\n"
        "    await asyncio.to_thread(sys.stdin.readline)\n"
        "    print(got[0])\n"
        "    for task in tasks: task.cancel()\n"
        "asyncio.run(main())\n"
    )
    host, port = address.removeprefix("http://").split(":")
    process = subprocess.Popen((sys.executable, "-c", code, host, port, str(count)), stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE, text=True)  # fmt: skip

    def counted() -> int:
        out, _ = process.communicate("end\n", timeout=20)
        return int(out)

    time.sleep(1.0)
    try:
        yield counted
    finally:
        process.kill()
        process.wait()


if __name__ == "__main__":
    main()
