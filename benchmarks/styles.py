"""A style that the miniature model has never drawn becomes a LoRA: forty scenes of its world, each with another character, as
a blueprint, as a hatched engraving, and in neon, with captions that name all that is seen.

    python benchmarks/styles.py [--styles blueprint,engraving,neon] [--home FOLDER] [--set SECTION.KEY=VALUE ...] [--no-save]

`style`: how far the LoRA goes from the base to the set, as the report has it. `likeness`: mean cosine of what is drawn to the
set by the embedder of styles, beside that of the set's own pictures. `palette`: the share of pixels near one of the set's
eight colours, which that embedder does not know of. `adherence`: how much of the prompts' looks and scenes the miniature's
reader, which never saw the style, still finds. The first eight pictures of each style's set, without the LoRA and with it are
the rows of results/styles.png."""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from common import RESULTS, finish, table
from PIL import Image, ImageChops, ImageFilter, ImageOps

from lora_foundry import Character, Foundry
from lora_foundry.domain.evaluation import Evaluation
from lora_foundry.files.paths import RunPaths
from lora_foundry.files.storage import require_model

sys.path.insert(0, str(Path(__file__).parents[1]))
from mini_world.captions import full_caption
from mini_world.render import render
from mini_world.scene import sample_scene

COUNT, SIDE = 40, 256
COLUMNS, CELL = 8, 96
NEAR = 40  # of 441, the greatest distance of two colours


def _lines(picture: Image.Image) -> Image.Image:
    """White outlines on black."""
    edges = picture.convert("L").filter(ImageFilter.FIND_EDGES)
    return edges.filter(ImageFilter.MaxFilter(3)).point(lambda value: min(255, value * 3))


def blueprint(picture: Image.Image) -> Image.Image:
    """White lines on blue paper."""
    return ImageOps.colorize(_lines(picture), (18, 52, 120), (235, 242, 255))


def engraving(picture: Image.Image) -> Image.Image:
    """Brown hatching on cream, closer where it is darker."""
    tones = np.asarray(picture.convert("L"), float) / 255
    down, right = np.mgrid[: picture.height, : picture.width]
    hatch = ((down + right) % 24) / 24
    inked = Image.fromarray(((tones > hatch * 0.9) * 255).astype(np.uint8))
    return ImageOps.colorize(inked, (92, 52, 24), (247, 236, 205))


def neon(picture: Image.Image) -> Image.Image:
    """Bright outlines in the picture's own colours, glowing on black."""
    lines = Image.merge("RGB", [_lines(picture)] * 3)
    bright = picture.convert("HSV")
    hue, strength, _ = bright.split()
    full = Image.merge(
        "HSV",
        (hue, strength.point(lambda value: min(255, value * 2 + 90)), Image.new("L", picture.size, 255)),
    )
    drawn = ImageChops.multiply(full.convert("RGB"), lines)
    return ImageChops.lighter(drawn, drawn.filter(ImageFilter.GaussianBlur(4)))


STYLES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "blueprint": blueprint,
    "engraving": engraving,
    "neon": neon,
}


def paint(style: str, folder: Path) -> None:
    """The set with its captions."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(5)
    for number in range(COUNT):
        scene = sample_scene(rng)
        plain = Image.fromarray(np.asarray(render(scene, number)))
        large = plain.resize((SIDE, SIDE), Image.Resampling.LANCZOS)
        path = folder / f"{number:02}.png"
        STYLES[style](large).save(path)
        path.with_suffix(".txt").write_text(f"{style}, {full_caption(scene)}", encoding="utf-8")


def palette_of(files: Sequence[Path]) -> np.ndarray:
    """(8, 3): the eight colours that the pictures are best drawn with."""
    sheet = np.concatenate([_small(file) for file in files])
    quantised = Image.fromarray(sheet).quantize(8)
    return np.array(quantised.getpalette(), float).reshape(-1, 3)[:8]


def palette_share(files: Sequence[Path], palette: np.ndarray) -> float:
    """The mean share of pixels near one of those colours."""
    pixels = np.stack([_small(file) for file in files]).astype(float)
    apart = np.linalg.norm(pixels[..., None, :] - palette, axis=-1).min(axis=-1)
    return round(float((apart < NEAR).mean()), 3)


def _small(file: Path) -> np.ndarray:
    with Image.open(file) as picture:
        return np.asarray(picture.convert("RGB").resize((64, 64), Image.Resampling.LANCZOS))


def learned(style: str, home: Path, settings: Sequence[str], sheet: Image.Image, row: int) -> dict[str, Any]:
    """A LoRA of the style, and what it draws; three rows of the sheet."""
    source = home / "sets" / style
    if not source.exists():
        paint(style, source)
    character = Character(name=style.capitalize(), description="")
    result = Foundry(home).create(character, "mini-style", pictures=[source], settings=settings)
    paths = RunPaths(result.dataset_dir, character.slug)
    scores = require_model(paths.evaluation_result, Evaluation, "evaluate")
    files = {"set": sorted(source.glob("*.png"))}
    for side in ("before", "after", "without_trigger"):
        files[side] = [paths.evaluation_pictures() / each.file for each in scores.side(side).pictures]
    palette = palette_of(files["set"])
    for line, side in enumerate(("set", "before", "after")):
        for column, file in enumerate(files[side][:COLUMNS]):
            with Image.open(file) as picture:
                small = picture.convert("RGB").resize((CELL, CELL), Image.Resampling.LANCZOS)
            sheet.paste(small, (column * CELL, (row + line) * CELL))
    rows = {"before": scores.before, "after": scores.after, "without_trigger": scores.without_trigger}
    return {
        "published": result.published,
        "verdict": result.assessment.model_dump(mode="json"),
        "style": {"before": scores.scores.identity_before, "after": scores.scores.identity_after},
        "likeness": {"set": scores.own_likeness} | {side: each.likeness for side, each in rows.items()},
        "palette": {side: palette_share(found, palette) for side, found in files.items()},
        "adherence": {side: each.adherence for side, each in rows.items()},
        "memorised": scores.after.memorised,
        "strength": scores.strength,
        "step": scores.step,
        "seconds": {stage: round(seconds, 1) for stage, seconds in result.seconds.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--styles", default=",".join(STYLES))
    parser.add_argument("--home", type=Path, default=None, help="keep everything in this folder")
    parser.add_argument("--set", action="append", default=[], dest="settings", metavar="SECTION.KEY=VALUE")
    parser.add_argument("--no-save", action="store_true", help="leave benchmarks/results as it is")
    options = parser.parse_args()
    styles = options.styles.split(",")
    home = options.home or Path(tempfile.mkdtemp(prefix="lora-foundry-styles-"))
    sheet = Image.new("RGB", (COLUMNS * CELL, 3 * len(styles) * CELL))
    try:
        runs = {
            style: learned(style, home, options.settings, sheet, 3 * place)
            for place, style in enumerate(styles)
        }
    finally:
        if options.home is None:
            shutil.rmtree(home, ignore_errors=True)
    for measure in ("style", "likeness", "palette", "adherence"):
        table(
            [measure, *runs[styles[0]][measure]],
            [[style, *run[measure].values()] for style, run in runs.items()],
        )
    sheet.save(
        (RESULTS if not options.no_save else Path(tempfile.gettempdir())) / "styles.png", optimize=True
    )
    figures = {
        style: {each: run[each] for each in ("style", "likeness", "palette", "adherence")}
        for style, run in runs.items()
    }
    finish(
        "styles",
        figures,
        {"pictures": COUNT, "settings": options.settings, "runs": runs},
        not options.no_save,
    )


if __name__ == "__main__":
    main()
