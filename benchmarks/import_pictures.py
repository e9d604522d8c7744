"""What a person's own pictures cost on their way to a training, in seconds and in memory: imported, looked at, captioned,
and read as the trainer reads them, once for the number asked for and once for the first tenth of them.

    python -m benchmarks.import_pictures [--pictures 200] [--megapixels 12] [--save]

Each count has a process of its own, so that the peaks are its own: where memory does not depend on how many there are, both
have the same. ms_each: of a picture, in that stage, by the clock; processor_ms_each: what of it this process computed, which
other programs on the machine change little. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from PIL import Image, ImageDraw, ImageFilter

from benchmarks.common import finish, table
from lora_foundry import pipeline
from lora_foundry.composition import RecipePorts
from lora_foundry.domain.character import Character
from lora_foundry.domain.dataset import TaggingResults
from lora_foundry.domain.run import ProgressEvent, Run
from lora_foundry.families._shared.inspect import recipe_base
from lora_foundry.files.importing import take_pictures
from lora_foundry.files.paths import RunPaths
from lora_foundry.files.storage import require_model, write_model
from lora_foundry.recipe_files import load_recipe
from lora_foundry.settings import Settings
from lora_foundry.stages.caption import step as caption
from lora_foundry.stages.curate import step as curate
from lora_foundry.stages.train.step import collect_images
from lora_foundry.trainer.images import read_tensor

SETTINGS = ("dataset.source=own", "train.buckets=true")


def paint(folder: Path, count: int, megapixels: float) -> None:
    """JPEG files as a camera writes them, all different: parts of one large painting, each with marks of its own."""
    height = round((megapixels * 1e6 * 3 / 4) ** 0.5)
    width = height * 4 // 3
    ground = Image.effect_noise((width, height), 40).convert("RGB").filter(ImageFilter.GaussianBlur(2))
    folder.mkdir(parents=True)
    for number in range(count):
        rng, picture = random.Random(number), ground.copy()
        draw = ImageDraw.Draw(picture)
        for _ in range(40):
            x, y, r = rng.randrange(width), rng.randrange(height), rng.randrange(20, height // 4)
            draw.ellipse((x - r, y - r, x + r, y + r), fill=tuple(rng.randrange(256) for _ in range(3)))
        picture.save(folder / f"IMG_{number:05d}.jpg", quality=90)
        (folder / f"IMG_{number:05d}.txt").write_text(f"elara, picture {number}", encoding="utf-8")


class Meter:
    """Seconds and peak memory of one stage after another, of this process."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self.rows: dict[str, dict[str, float]] = {}

    def measure(self, stage: str, work: Callable[[], object]) -> None:
        before, started, busy = self._rss(), time.perf_counter(), time.process_time()
        work()
        self.rows[stage] = {
            "seconds": time.perf_counter() - started,
            "processor_seconds": time.process_time() - busy,
            "before_mib": before,
            "after_mib": self._rss(),
            "peak_mib": peak_mib(),
        }

    def _rss(self) -> float:
        return self._process.memory_info().rss / 2**20


def peak_mib() -> float:
    """The most memory that this process has held at once, from Linux's own count."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) / 1024


def quiet(event: ProgressEvent) -> None:
    """Nobody watches."""


def journey(source: Path, home: Path) -> dict[str, dict[str, float]]:
    """One set from the folder to the trainer's door."""
    settings = Settings(home=home)
    recipe = load_recipe("mini", SETTINGS)
    base = recipe_base(recipe, settings)
    run = Run(
        character=Character(name="Elara", description=""),
        recipe=recipe,
        dataset_dir=settings.datasets_dir / "Elara",
        lora_dir=settings.loras_dir,
        output_name="elara_mini",
    )
    paths = RunPaths(run.dataset_dir, run.character.slug)
    ports, meter = RecipePorts(recipe, base, settings), Meter()
    meter.measure("import", lambda: take_pictures([source], paths))
    write_model(paths.run_file, run)
    meter.measure("take in", lambda: pipeline.generate(run, ports, quiet))
    meter.measure("look at", lambda: curate.run(run, ports, quiet))
    meter.measure("look again", lambda: curate.run(run, ports, quiet))
    meter.measure("caption", lambda: caption.run(run, ports, quiet))

    def read() -> None:
        tagged = require_model(paths.tagging_results, TaggingResults, "caption")
        for image in collect_images(run, paths, tagged):
            read_tensor(image.path, (recipe.train.resolution, recipe.train.resolution))

    meter.measure("read", read)
    return meter.rows


def measured(source: Path, home: Path) -> dict[str, dict[str, float]]:
    """`journey` in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(journey, (source, home))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pictures", type=int, default=200)
    parser.add_argument("--megapixels", type=float, default=12.0)
    parser.add_argument("--save", action="store_true")
    options = parser.parse_args()
    counts = (max(1, options.pictures // 10), options.pictures)
    found: dict[int, dict[str, dict[str, float]]] = {}
    folder = Path(tempfile.mkdtemp(prefix="lora-foundry-import-"))
    try:
        paint(whole := folder / "whole", counts[1], options.megapixels)
        for count in counts:
            source = folder / f"{count}"
            source.mkdir()
            for path in sorted(whole.iterdir())[: 2 * count]:  # a picture and its caption
                os.link(path, source / path.name)
            found[count] = measured(source, folder / f"home-{count}")
            shutil.rmtree(source)
            shutil.rmtree(folder / f"home-{count}")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    few, many = (found[count] for count in counts)
    figures: dict[str, Any] = {"pictures": counts[1], "megapixels": options.megapixels, "stages": {}}
    for stage, row in many.items():
        figures["stages"][stage] = {
            "seconds": round(row["seconds"], 2),
            "ms_each": round(row["seconds"] / counts[1] * 1000, 1),
            "processor_ms_each": round(row["processor_seconds"] / counts[1] * 1000, 1),
            "processor_ms_each_of_a_tenth": round(few[stage]["processor_seconds"] / counts[0] * 1000, 1),
            "peak_mib": round(row["peak_mib"]),
            "peak_mib_of_a_tenth": round(few[stage]["peak_mib"]),
        }
    header = ["stage", *next(iter(figures["stages"].values()))]
    table(header, [[stage, *row.values()] for stage, row in figures["stages"].items()])
    details = {
        "load": round(os.getloadavg()[2], 1),
        "pictures": {str(count): rows for count, rows in found.items()},
    }
    finish("import_pictures", figures, json.loads(json.dumps(details)), options.save)


if __name__ == "__main__":
    main()
