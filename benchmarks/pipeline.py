"""Seconds a stage of the whole pipeline, and how they grow with the number of pictures."""

from __future__ import annotations

import argparse
import tempfile

from common import finish, table

from lora_foundry import Character, Foundry


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", default="mini")
    parser.add_argument("--images", type=int, nargs="+", default=[40, 80, 160])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", action="append", default=[], dest="settings", metavar="SECTION.KEY=VALUE")
    parser.add_argument("--no-save", action="store_true", help="leave benchmarks/results as it is")
    options = parser.parse_args()
    who = Character(name="Elara", description="1girl, brown hair, long hair, blue eyes, red dress, crown")
    seconds: dict[int, dict[str, float]] = {}
    for images in options.images:
        with tempfile.TemporaryDirectory() as home:
            result = Foundry(home).create(
                who,
                options.recipe,
                settings=[*options.settings, f"generate.images={images}"],
                seed=options.seed,
            )
            seconds[images] = result.seconds
            print(f"{images} pictures: {result.seconds}", flush=True)
    first, last = options.images[0], options.images[-1]
    rows: list[list[object]] = []
    for stage in seconds[first]:
        times = [seconds[images][stage] for images in options.images]
        rows.append([stage, *times, round(times[-1] / times[0], 2) if times[0] else "-"])
    totals = [round(sum(seconds[images].values()), 1) for images in options.images]
    rows.append(["all", *totals, round(totals[-1] / totals[0], 2)])
    table(["stage", *(f"{images} pictures, s" for images in options.images), f"{last} to {first}"], rows)
    figures = {f"seconds_{images}": total for images, total in zip(options.images, totals, strict=True)}
    details = {
        "recipe": options.recipe,
        "settings": options.settings,
        "stages": seconds,
        "seed": options.seed,
    }
    finish(f"pipeline-{options.recipe}", figures, details, not options.no_save)


if __name__ == "__main__":
    main()
