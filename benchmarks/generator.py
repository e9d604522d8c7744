"""Pictures a second and peak memory of the in-process generator for a recipe's whole set, batch size chosen by what is
fastest in the memory there is; beside a ComfyUI server with --against, which gets the same requests in turns.

    python benchmarks/generator.py --recipe sd15 --base PATH --against http://127.0.0.1:8188
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from common import finish, table

from lora_foundry import Character
from lora_foundry.composition import RecipePorts
from lora_foundry.domain.dataset import ImageRequest
from lora_foundry.domain.picture_plan import plan_pictures
from lora_foundry.domain.recipe import Recipe
from lora_foundry.errors import BackendError
from lora_foundry.families._shared.inspect import find_base
from lora_foundry.ports import Generator
from lora_foundry.recipe_files import load_recipe
from lora_foundry.settings import Settings

WHO = Character(name="Elara", description="1girl, brown hair, long hair, blue eyes, red dress, crown")


def requests_of(recipe: Recipe, model: str) -> list[ImageRequest]:
    """What the generate stage would ask for, picture by picture."""
    plan = plan_pictures(WHO, recipe, model)
    return [plan.record(index).request for index in range(recipe.generate.images)]


def run(generator: Generator, requests: Sequence[ImageRequest], size: int) -> float:
    """Seconds for all of them in batches of `size`."""
    batches = [requests[first : first + size] for first in range(0, len(requests), size)]
    started = time.perf_counter()
    count = sum(1 for _ in generator.generate(batches))
    assert count == len(requests)
    return time.perf_counter() - started


def choose_batch(generator: Generator, requests: Sequence[ImageRequest]) -> tuple[int, dict[int, float]]:
    """The size with the most pictures a second among 1, 2, 4, ... until memory or the gain ends."""
    rates: dict[int, float] = {}
    size = 1
    run(generator, requests[:1], 1)  # loads
    while size <= len(requests):
        try:
            rates[size] = round(size / run(generator, requests[:size], size), 3)
        except BackendError as error:
            print(f"batch {size}: {error}", file=sys.stderr)
            break
        if size > 1 and rates[size] < 1.03 * rates[size // 2]:
            break
        size *= 2
    return max(rates, key=lambda each: rates[each]), rates


def peak_memory() -> dict[str, float]:
    """Of this process, GB."""
    import torch

    gpu = torch.cuda.max_memory_reserved() / 1e9 if torch.cuda.is_available() else 0.0
    scale = 1 if sys.platform == "darwin" else 1024
    return {
        "rss": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale / 1e9, 2),
        "gpu": round(gpu, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", default="sd15")
    parser.add_argument("--base", help="another base model than the recipe's")
    parser.add_argument(
        "--against", help="a ComfyUI server's address; it must know the base by its file name"
    )
    parser.add_argument("--images", type=int, default=0, help="0: as many as the recipe makes")
    parser.add_argument("--batch", type=int, default=0, help="0: chosen by measurement")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--set", action="append", default=[], dest="settings", metavar="SECTION.KEY=VALUE")
    parser.add_argument("--no-save", action="store_true", help="leave benchmarks/results as it is")
    options = parser.parse_args()
    changes = [*options.settings, *([f'model.base="{options.base}"'] if options.base else [])]
    changes += [f"generate.images={options.images}"] if options.images else []
    recipe = load_recipe(options.recipe, changes)
    settings = Settings(comfyui_url=options.against) if options.against else Settings()
    base = find_base(recipe.model.base, settings.model_folders)
    sides: dict[str, Generator] = {"ours": RecipePorts(recipe, base, settings).generator}
    if options.against:
        other = load_recipe(options.recipe, [*changes, "generate.backend=comfyui"])
        sides["comfyui"] = RecipePorts(other, base, settings).generator
    requests = requests_of(recipe, sides["ours"].model)
    batches, tried = {}, {}
    for name, generator in sides.items():
        batches[name], tried[name] = (
            (options.batch, {}) if options.batch else choose_batch(generator, requests)
        )
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(options.rounds):
        for name, generator in sides.items():
            seconds[name].append(round(run(generator, requests, batches[name]), 3))
    rates = {name: round(len(requests) / min(each), 3) for name, each in seconds.items()}
    memory = peak_memory()
    table(
        ["", "batch", "seconds", "pictures/s"],
        [[name, batches[name], min(seconds[name]), rates[name]] for name in sides],
    )
    figures: dict[str, object] = {"images_per_second": rates["ours"], "batch": batches["ours"], **memory}
    if "comfyui" in rates:
        figures["ratio"] = round(rates["ours"] / rates["comfyui"], 3)
    for generator in sides.values():
        generator.close()
    details = {"recipe": options.recipe, "base": Path(base.path).name, "images": len(requests), "seconds": seconds,
               "batches_tried": tried, "settings": changes}  # fmt: skip
    finish(f"generator-{options.recipe}", figures, details, not options.no_save)


if __name__ == "__main__":
    main()
