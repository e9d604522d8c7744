"""How soon each page of the dashboard shows something, and shows what it was asked for, with 200 runs of 40 pictures
of 768 x 768 in the table, in a real Chromium on the real server.

    python -m benchmarks.dashboard [--runs 200] [--visits 5] [--save]

first paint: the browser's own first-contentful-paint. shown: when the page has drawn its data. cold: the first visit
of all, with an empty cache and no thumbnail made yet. block: the longest task of the browser's thread meanwhile. cpu: what
the server's process computed for one visit, which another program on the machine does not change; requests: how many it got.
The last line is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import shutil
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median
from typing import Any

import sqlalchemy as sa
from PIL import Image, ImageDraw, ImageFilter
from playwright.sync_api import Browser, Page, sync_playwright

from benchmarks.common import finish, table
from lora_foundry.domain.character import Character
from lora_foundry.domain.evaluation import Evaluation, EvaluationPicture, ScoreRow
from lora_foundry.domain.shots import Shot
from lora_foundry.files.paths import RunPaths
from lora_foundry.files.storage import write_model, write_text
from lora_foundry.settings import Settings
from lora_foundry.tasks.pipelines import PipelineRequest, pipeline_tasks
from lora_foundry.tasks.schema import ours, tasks
from lora_foundry.tasks.store import TaskStore
from tests.browser.chromium import FLAGS, find_chromium
from tests.browser.conftest import WIDE, Server, settled

PICTURES, SIZE, PAIRS = 40, 768, 64
SHOT = Shot("standing confidently", "smiling warmly", "front view", "natural lighting", "simple background")
WATCH = """
window.blocked = 0;
new PerformanceObserver((list) => {
    for (const each of list.getEntries()) window.blocked = Math.max(window.blocked, each.duration);
}).observe({ type: "longtask", buffered: true });
"""


def paint(folder: Path) -> list[Path]:
    """40 pictures with the sizes of real ones; the sets share them as hard links."""
    random.seed(0)
    folder.mkdir(parents=True)
    made = []
    for index in range(PICTURES):
        picture = Image.effect_noise((SIZE, SIZE), 40).convert("RGB").filter(ImageFilter.GaussianBlur(2))
        draw = ImageDraw.Draw(picture)
        for _ in range(12):
            x, y, r = (random.randrange(SIZE), random.randrange(SIZE), random.randrange(20, 160))
            draw.ellipse((x - r, y - r, x + r, y + r), fill=tuple(random.randrange(256) for _ in range(3)))
        made.append(folder / f"{index + 1:03d}.png")
        picture.save(made[-1])
    return made


def fill_folder(paths: RunPaths, pictures: Sequence[Path]) -> None:
    """A finished set with captions, loss, and an evaluation of 64 pairs."""
    for index, picture in enumerate(pictures):
        target = paths.image(index)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.link(picture, target)
        write_text(paths.caption(target), f"{paths.slug}, {', '.join(SHOT.words())}, picture {index}\n")
    rows = {}
    for side in ("before", "after"):
        paths.evaluation_pictures(side).mkdir(parents=True)
        names = [f"{side}/{index:03d}.png" for index in range(PAIRS)]
        for index, name in enumerate(names):
            os.link(pictures[index % len(pictures)], paths.evaluation_pictures() / name)
        shown = [
            EvaluationPicture(file=name, shot=SHOT, prompt="a prompt", seed=index)
            for index, name in enumerate(names)
        ]
        rows[side] = ScoreRow(identity=0.5, adherence=0.9, pictures=tuple(shown))
    write_model(paths.evaluation_result, Evaluation(
        character=paths.slug, trigger=paths.slug, model="painted", before=rows["before"], after=rows["after"],
        without_trigger=ScoreRow(),
        strength=1.0, lora_sha256="", shots=16, held_out=16, fingerprint="painted", seconds=1.0))  # fmt: skip
    losses = "".join(
        f"{step},{1 / (1 + step / 300) + random.random() / 9:.5f},0.0001\n" for step in range(1, 6001)
    )
    paths.training.mkdir(parents=True)
    write_text(paths.training / "loss.csv", f"step,loss,learning_rate\n{losses}")


async def fill_table(settings: Settings, names: Sequence[str]) -> str:
    """Six rows a run: most are completed, the newest few run. Returns the newest completed pipeline's id."""
    store = TaskStore(settings.task_database)
    await store.upgrade()
    now, chosen = datetime.now(UTC), ""
    for number, name in enumerate(names):
        rows = pipeline_tasks(
            PipelineRequest(character=Character(name=name, description=f"1girl, number {number}"))
        )
        await store.add(*rows)
        done = number < len(names) - 5
        chosen = str(rows[0].pipeline) if done else chosen
        for index, row in enumerate(rows):
            status = "completed" if done or index < 3 else "running" if index == 3 else "pending"
            values: dict[str, Any] = {"status": status, "started_at": now - timedelta(minutes=9)}
            values |= {"completed_at": now - timedelta(minutes=5)} if status == "completed" else {}
            progress = {"stage": "train", "done": 700, "total": 6000, "unit": "step", "loss": 0.2}
            async with store.writing() as connection:
                await connection.execute(sa.update(tasks).where(tasks.c.id == row.id).values(**values))
                beside = {"status": status, "queue": None, "progress": progress}
                await connection.execute(sa.update(ours).where(ours.c.id == row.id).values(**beside))
    await store.close()
    return chosen


def visit(browser: Browser, server: Server, address: str) -> dict[str, float]:
    """One visit with an empty cache: milliseconds from the start of the navigation."""
    context = browser.new_context(viewport=WIDE)
    context.add_init_script(WATCH)
    page = context.new_page()
    before, requests = server.cpu_seconds(), list[str]()
    page.on("request", lambda request: requests.append(request.url))
    page.goto(server.url + address)
    settled(page)
    page.wait_for_timeout(1000)  # what follows the first drawing may block as well
    figures = page.evaluate("""() => ({
        paint: performance.getEntriesByName("first-contentful-paint")[0].startTime,
        shown: performance.getEntriesByName("shown")[0].startTime, block: window.blocked})""")
    context.close()
    spent = {"cpu": 1000 * (server.cpu_seconds() - before), "requests": float(len(requests))}
    return {name: float(value) for name, value in figures.items()} | spent


def handle_200_rows(browser: Browser, server: Server, runs: int) -> dict[str, float]:
    """All runs shown, scrolled through, and filtered: milliseconds until a typed word has filtered the list."""
    context = browser.new_context(viewport=WIDE)
    context.add_init_script(WATCH)
    page: Page = context.new_page()
    settled_page = page.goto(server.url) and settled(page)
    more = settled_page.locator("#more")
    while more.is_visible():
        count = page.locator("#runs li").count()
        more.click()
        page.locator("#runs li").nth(count).wait_for(state="attached")
    assert page.locator("#runs li").count() == runs
    page.evaluate("window.blocked = 0")
    for _ in range(20):
        page.mouse.wheel(0, 1200)
        page.wait_for_timeout(50)
    scrolled = float(page.evaluate("window.blocked"))
    typed = float(
        page.evaluate("""() => new Promise((resolve) => {
        const [list, field] = [document.getElementById("runs"), document.getElementById("search")];
        const start = performance.now();
        new MutationObserver((_, watcher) => {
            if (list.children.length >= 15) return;
            watcher.disconnect();
            resolve(performance.now() - start);
        }).observe(list, { childList: true });
        field.value = "number 17";
        field.dispatchEvent(new Event("input", { bubbles: true }));
    })""")
    )
    context.close()
    return {"scroll_block": scrolled, "filter": typed}


def measure(server: Server, run: str, runs: int, visits: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Figures for the last line, and each page's."""
    addresses = {"pipelines": "/", "new": "/new", "run": f"/pipelines/{run}", "dataset": f"/pipelines/{run}/dataset",
                 "results": f"/pipelines/{run}/results", "system": "/system"}  # fmt: skip
    pages: dict[str, dict[str, float]] = {}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=list(FLAGS))
        for name, address in addresses.items():
            seen = [visit(browser, server, address) for _ in range(visits + 1)]
            warm = seen[1:]
            pages[name] = {
                "paint_cold": seen[0]["paint"], "shown_cold": seen[0]["shown"],
                "paint": median(each["paint"] for each in warm), "paint_worst": max(each["paint"] for each in warm),
                "shown": median(each["shown"] for each in warm), "block": median(each["block"] for each in warm),
                "cpu": median(each["cpu"] for each in warm), "requests": median(each["requests"] for each in warm),
            }  # fmt: skip
        handled = handle_200_rows(browser, server, runs)
        browser.close()
    worst = {
        f"worst_{key}_ms": round(max(page[key] for page in pages.values()))
        for key in ("paint_cold", "paint", "paint_worst", "shown")
    }
    figures = {
        "runs": runs,
        "pictures": runs * PICTURES,
        **worst,
        **{f"{name}_ms": round(value) for name, value in handled.items()},
    }
    return figures, pages


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--visits", type=int, default=5)
    parser.add_argument("--save", action="store_true")
    asked = parser.parse_args()
    home = Path(tempfile.mkdtemp(prefix="lora-foundry-dashboard-"))
    server = Server(home)
    try:
        settings = Settings(home=home)
        pictures = paint(home / "pictures")
        names = [f"Character {number:03d}" for number in range(asked.runs)]
        for name in names:
            fill_folder(RunPaths(settings.datasets_dir / name, name.lower().replace(" ", "_")), pictures)
        run = asyncio.run(fill_table(settings, names))
        server.start()
        figures, pages = measure(server, run, asked.runs, asked.visits)
    finally:
        server.stop()
        shutil.rmtree(home, ignore_errors=True)
    heads = ("paint_cold", "shown_cold", "paint", "paint_worst", "shown", "block", "cpu", "requests")
    table(
        ("page, ms", *heads), [(name, *(round(page[head]) for head in heads)) for name, page in pages.items()]
    )
    load = [round(each, 1) for each in os.getloadavg()]
    finish(
        "dashboard", figures, {"pages_ms": pages, "visits": asked.visits, "load_average": load}, asked.save
    )


if __name__ == "__main__":
    main()
