"""What each stage of the pipeline costs, and how that grows with the number of pictures: seconds of the processor, which
other programs on the machine change little, and the most memory that the process held during the stage.

    python benchmarks/pipeline.py [--images 40 80 160 640] [--draw] [--set SECTION.KEY=VALUE]

Each count has a process of its own. Unless `--draw` is given, a program paints the pictures instead of the model, whose
seconds a picture are known and the same for every number; trained are a few steps for the same reason. What is left is what
could grow worse than linearly: listings, comparisons, thumbnails, captions, latents, the report. The last column is how
often as much the last count costs as the first; the pictures are so many times as many. The last line is JSON.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from common import finish, table
from PIL import Image

from lora_foundry.composition import RecipePorts
from lora_foundry.domain.character import Character
from lora_foundry.domain.dataset import ImageRequest, ReferenceUse
from lora_foundry.domain.lora import LoraUse
from lora_foundry.domain.run import ProgressEvent, Run
from lora_foundry.families._shared.inspect import recipe_base
from lora_foundry.files.paths import RunPaths
from lora_foundry.files.storage import write_model
from lora_foundry.pipeline import PIPELINE
from lora_foundry.ports import GeneratedImage
from lora_foundry.recipe_files import load_recipe
from lora_foundry.settings import Settings

SHORT = (
    "generate.rounds=1", "generate.complete_description=false", "train.steps=4", "train.saves=2", "train.regularisation=0",
    "train.sample_prompts=[]", "publish.min_change=0", "evaluate.prompts=4", "evaluate.seeds=1",
)  # fmt: skip
WHO = Character(name="Elara", description="1girl, brown hair, long hair, blue eyes, red dress, crown")


class Painter:
    """A generator that renders the same figure in another shot for every seed, in milliseconds."""

    model = "painted"

    def __init__(self) -> None:
        sys.path.insert(0, str(Path(__file__).parents[1]))
        from mini_world.scene import sample_character

        self._who = sample_character(np.random.default_rng(0))

    def generate(
        self,
        batches: Iterable[Sequence[ImageRequest]],
        lora: LoraUse | None = None,
        reference: ReferenceUse | None = None,
    ) -> Iterator[GeneratedImage]:
        """See ports.Generator."""
        from mini_world.render import render
        from mini_world.scene import sample_scene

        for batch in batches:
            for request in batch:
                scene = sample_scene(np.random.default_rng(request.seed), self._who, None)
                pixels = render(scene, random.Random(request.seed).randrange(2**31))
                yield GeneratedImage(request, Image.fromarray(pixels))

    def close(self) -> None:
        """See ports.Generator."""


def reset_peak() -> None:
    """Has Linux count the peak of this process's memory anew."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_mib() -> float:
    """The most memory that this process has held at once since then."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) / 1024


def quiet(event: ProgressEvent) -> None:
    """Nobody watches."""


def measured(images: int, recipe: str, changes: Sequence[str], draw: bool) -> dict[str, dict[str, float]]:
    """One pipeline of so many pictures in this process: CPU seconds, seconds by the clock and peak memory, a stage each."""
    with tempfile.TemporaryDirectory() as home:
        settings = Settings(home=Path(home))
        values = load_recipe(recipe, [*(() if draw else SHORT), f"generate.images={images}", *changes])
        run = Run(
            character=WHO,
            recipe=values,
            dataset_dir=settings.datasets_dir / WHO.name,
            lora_dir=settings.loras_dir,
            output_name="elara",
        )
        write_model(RunPaths(run.dataset_dir, WHO.slug).run_file, run)
        ports = RecipePorts(values, recipe_base(values, settings), settings)
        if not draw:
            ports.__dict__["generator"] = Painter()
        found = {}
        for stage in PIPELINE:
            reset_peak()
            started, busy = time.perf_counter(), time.process_time()
            stage.load()(run, ports, quiet)
            found[stage.name] = {
                "cpu_seconds": round(time.process_time() - busy, 2),
                "seconds": round(time.perf_counter() - started, 2),
                "peak_mib": round(peak_mib()),
            }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", default="mini")
    parser.add_argument("--images", type=int, nargs="+", default=[40, 80, 160, 640])
    parser.add_argument(
        "--draw", action="store_true", help="draw with the model and train as the recipe says"
    )
    parser.add_argument("--set", action="append", default=[], dest="settings", metavar="SECTION.KEY=VALUE")
    parser.add_argument("--no-save", action="store_true", help="leave benchmarks/results as it is")
    options = parser.parse_args()
    found: dict[int, dict[str, dict[str, float]]] = {}
    for images in options.images:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            found[images] = pool.apply(measured, (images, options.recipe, options.settings, options.draw))
        print(f"{images} pictures: {found[images]}", flush=True)
    first, last = options.images[0], options.images[-1]
    for measure in ("cpu_seconds", "peak_mib"):
        rows = []
        for stage in found[first]:
            row = [found[images][stage][measure] for images in options.images]
            rows.append([stage, *row, f"{row[-1] / row[0]:.1f}" if row[0] else "-"])
        table([measure, *map(str, options.images), f"x, {last / first:g} times as many"], rows)
    details = {"recipe": options.recipe, "settings": options.settings, "drawn": options.draw}
    name = f"pipeline-{options.recipe}" + ("" if options.draw else "-growth")
    finish(name, {str(images): row for images, row in found.items()}, details, not options.no_save)


if __name__ == "__main__":
    main()
