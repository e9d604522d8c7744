"""Three ways to hand work to lora-foundry from another program: a whole pipeline, single tasks, and plain SQL.

    python examples/echo_brain_tasks.py [--home DIR]

Needs no server: tasks are kept in a SQLite file and a worker runs in this process until all of them have ended.
The settings are small, so that the example ends in minutes on a processor; leave them out for a LoRA worth having.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sqlite3
import tempfile
from pathlib import Path

from lora_foundry.compat.echo import TaskQueue, create_complete_lora_pipeline, create_lora_generation_task
from lora_foundry.settings import Settings
from lora_foundry.stage_job import ENTRY
from lora_foundry.tasks.worker import Worker, WorkerOptions

SMALL = {
    "generate": {"images": 6, "steps": 4, "batch_size": 3, "rounds": 1},
    "curate": {"budget": 1},
    "train": {"steps": 12, "batch_size": 2, "rank": 4, "saves": 1, "sample_steps": 1, "regularisation": 0},
    "evaluate": {"prompts": 2, "seeds": 1, "choice_prompts": 2},
    "publish": {"min_change": 0},
}
LOOKS = "1girl, brown hair, long hair, blue eyes, red dress"


async def main(home: Path) -> None:
    settings = Settings(home=home)
    database = home / "tasks.db"
    queue = TaskQueue(f"sqlite:///{database}")
    await queue.initialize()

    # 1. A pipeline: three tasks, each waiting for the one before.
    ids = await create_complete_lora_pipeline(
        "Elara",
        LOOKS,
        "brown hair, blue eyes",
        "elara_v1",
        queue,
        settings=SMALL,
        output_root=settings.datasets_dir,
    )

    # 2. One task, only the pictures.
    single = await queue.add_task(
        create_lora_generation_task("Borin", "1boy, red hair, beard", settings=SMALL)
    )

    # 3. SQL by hand, as any program can write it.
    payload = {"character_name": "Mira", "description": "1girl, blonde hair, green eyes", "settings": SMALL}
    with sqlite3.connect(database) as connection:
        connection.execute(
            "INSERT INTO echo_tasks (name, task_type, payload) VALUES (?, 'user_request', ?)",
            ("pictures of Mira", json.dumps(payload)),
        )

    stop = asyncio.Event()
    worker = asyncio.create_task(Worker(queue.store, settings, WorkerOptions(ENTRY)).run(stop))
    while True:
        stats = await queue.get_task_stats()
        if stats["completed"] + stats["failed"] + stats["cancelled"] == stats["total"] or worker.done():
            break
        await asyncio.sleep(0.2)
    stop.set()
    await worker
    for task in reversed(await queue.store.recent()):
        print(f"{task.id}  {task.status:9}  {task.name}  {task.error or ''}")
    print("pipeline:", ids["training_task_id"], "single:", single)
    print("LoRA:", settings.loras_dir / f"{ids['output_name']}.safetensors")
    await queue.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--home", type=Path, help="where everything goes; a temporary folder if not given")
    chosen = parser.parse_args().home or Path(tempfile.mkdtemp(prefix="lora-foundry-"))
    asyncio.run(main(chosen.absolute()))
