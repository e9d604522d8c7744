"""A set of own pictures made by another hand becomes a LoRA of the miniature model: 60 pictures of one character of the style
Pixel Art, whose design is under CC0 1.0 (npm packages @dicebear/core and @dicebear/pixel-art, drawn by @resvg/resvg-js).

    python own_pictures.py [--packages FOLDER] [--home FOLDER] [--set SECTION.KEY=VALUE ...] [--no-save]

First ten faults are planted among them and the report of the curation is read: which of the ten it names as what they
are, and how many of the sixty good ones it doubts. Then the sixty are trained on as `create --pictures` trains, without
regularisation pictures and with the recipe's (`--set` changes it).
`likeness`: mean cosine of the drawn pictures to the set, by the miniature's own embedder, beside that of the set's own
pictures. `colours`: the share of pixels that have one of the character's four colours, which needs no network to judge.
Node and npm are needed; what they fetch goes to a folder that is removed, or is in that of --packages. The first eight
pictures without the LoRA, with that which knows no regularisation pictures, and with the recipe's are lined up in
results/own_pictures_before.png, _plain.png and _after.png.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from common import RESULTS, finish, table
from PIL import Image, ImageFilter

from lora_foundry import Character, Foundry
from lora_foundry.composition import RecipePorts
from lora_foundry.domain.evaluation import Evaluation
from lora_foundry.domain.run import ProgressEvent
from lora_foundry.domain.triage import Triage
from lora_foundry.files.importing import import_pictures
from lora_foundry.files.paths import RunPaths
from lora_foundry.files.storage import require_model, write_model
from lora_foundry.pipeline import generate
from lora_foundry.stages.curate import step as curate

PACKAGES = ("@dicebear/core@9.4.3", "@dicebear/pixel-art@9.4.3", "@resvg/resvg-js@2")
SIDE, COUNT = 256, 60
HAIR, SKIN, SHIRT, EYES = "cb6820", "ffdbac", "00b159", "5b7c8b"
COLOURS = {"b6e3f4": "blue", "c0aede": "purple", "ffd5dc": "pink", "d1d4f9": "lavender", "ffffff": "white"}
PIXIE = Character(name="Pixie", description="")
LOOK = {
    "hair": ["long05"], "hairColor": [HAIR], "skinColor": [SKIN], "clothing": ["variant03"], "clothingColor": [SHIRT],
    "eyesColor": [EYES], "beardProbability": 0, "hatProbability": 0, "glassesProbability": 0, "accessoriesProbability": 0,
}  # fmt: skip
SOMEBODY_ELSE = {
    "hair": ["short14"], "hairColor": ["28150a"], "skinColor": ["8d5524"], "clothing": ["variant12"],
    "clothingColor": ["d11141"], "beardProbability": 100, "beard": ["variant05"],
}  # fmt: skip


def scenes(rng: random.Random) -> list[tuple[dict[str, Any], str]]:
    """What the style is asked for in each of the sixty pictures, all different, and the caption that says it."""
    asked: dict[tuple[Any, ...], tuple[dict[str, Any], str]] = {}
    while len(asked) < COUNT:
        eyes, mood, ground = rng.randint(1, 12), rng.choice(["happy", "sad"]), rng.choice(list(COLOURS))
        mouth, left = rng.randint(1, 13 if mood == "happy" else 10), rng.random() < 0.5
        scale, lower = rng.choice([75, 85, 95]), rng.choice([0, 5, 10])
        options = {
            "eyes": [f"variant{eyes:02}"], "mouth": [f"{mood}{mouth:02}"], "backgroundColor": [ground], "flip": left,
            "scale": scale, "translateY": lower,
        }  # fmt: skip
        words = ["pixie", "smile" if mood == "happy" else "sad", f"{COLOURS[ground]} background"]
        asked[eyes, mood, mouth, ground, left] = (
            options,
            ", ".join([*words, *(["facing left"] if left else [])]),
        )
    return list(asked.values())


def draw(packages: Path, jobs: Sequence[dict[str, Any]]) -> None:
    """Lets the style draw PNG files. Raises CalledProcessError."""
    script = Path(__file__).with_name("pixel_art.mjs")
    lines = "\n".join(json.dumps({"seed": "pixie", "side": SIDE, **LOOK, **job}) for job in jobs)
    subprocess.run(["node", str(script)], input=lines, text=True, cwd=packages, check=True)


def paint(packages: Path, folder: Path) -> None:
    """The sixty pictures with their captions."""
    folder.mkdir(parents=True)
    jobs = []
    for number, (options, caption) in enumerate(scenes(random.Random(7))):
        file = folder / f"pixie {number:02}.png"
        file.with_suffix(".txt").write_text(caption, encoding="utf-8")
        jobs.append({"file": str(file), **options})
    draw(packages, jobs)


def plant(packages: Path, folder: Path) -> dict[str, str]:
    """Ten faulty pictures beside the good ones: file -> the finding that names its fault."""
    planted: dict[str, str] = {}

    def spoil(
        name: str, code: str, source: int, change: Callable[[Image.Image], Image.Image], **how: Any
    ) -> Path:
        path = folder / name
        with Image.open(folder / f"pixie {source:02}.png") as picture:
            change(picture.convert("RGB")).save(path, **how)
        path.with_suffix(".txt").write_text("pixie, smile", encoding="utf-8")
        planted[name] = code
        return path

    cut = spoil("cut off.png", "unreadable", 1, lambda picture: picture)
    cut.write_bytes(cut.read_bytes()[:-600])
    spoil("no picture.png", "unreadable", 2, lambda picture: picture).write_bytes(b"<html>not found</html>")
    spoil("thumbnail.png", "too_small", 3, lambda picture: picture.resize((24, 24)))
    spoil("out of focus.png", "blurred", 4, lambda picture: picture.filter(ImageFilter.GaussianBlur(24)))
    spoil("empty.png", "blank", 5, lambda picture: Image.new("RGB", picture.size, (90, 120, 60)))
    spoil("copy.jpg", "near_duplicate", 6, lambda picture: picture, quality=80)
    spoil(
        "smaller copy.png",
        "near_duplicate",
        7,
        lambda picture: picture.resize((200, 200), Image.Resampling.LANCZOS),
    )
    draw(packages, [{**SOMEBODY_ELSE, "file": str(folder / "somebody else.png"), "seed": "other"}])
    (folder / "somebody else.txt").write_text("pixie, smile", encoding="utf-8")
    planted["somebody else.png"] = "other_person"
    spoil("unsaid.png", "caption_empty", 8, lambda picture: picture.rotate(7, fillcolor="white"))
    (folder / "unsaid.txt").write_text("  \n", encoding="utf-8")
    spoil("nameless.png", "trigger_missing", 9, lambda picture: picture.rotate(-7, fillcolor="white"))
    (folder / "nameless.txt").write_text("smile, white background", encoding="utf-8")
    return planted


def quiet(event: ProgressEvent) -> None:
    """Nobody watches."""


class Report(NamedTuple):
    """What the report says, before anything is trained. said: name -> codes; two that are nearly the same are said once,
    which counts for both. doubted: the same of good pictures, without what is said of them because of a planted one."""

    said: dict[str, list[str]]
    doubted: dict[str, list[str]]


def triaged(source: Path, home: Path, planted: Mapping[str, str]) -> Report:
    """Imports the pictures and reads the report on them. What was left out is unreadable."""
    foundry = Foundry(home)
    run, base = foundry.prepare(PIXIE, "mini", own=True)
    paths = RunPaths(run.dataset_dir, run.character.slug)
    import_pictures([source], paths)
    write_model(paths.run_file, run)
    ports = RecipePorts(run.recipe, base, foundry.settings)
    try:
        generate(run, ports, quiet)
        curate.run(run, ports, quiet)
    finally:
        ports.close()
    report = require_model(paths.triage, Triage, "curate")
    said: dict[str, list[str]] = {name: ["unreadable"] for name, _ in report.left_out}
    doubted: dict[str, list[str]] = {}
    for picture in report.pictures:
        for finding in picture.findings:
            for name in filter(None, (picture.name, finding.other)):
                said.setdefault(name, []).append(finding.code)
            if not {picture.name, finding.other} & planted.keys():
                doubted.setdefault(picture.name, []).append(finding.code)
    return Report(said, doubted)


def share_of_colours(paths: Sequence[Path]) -> float:
    """The mean share of pixels that are near one of the character's colours."""
    wanted = np.array([list(bytes.fromhex(colour)) for colour in (HAIR, SKIN, SHIRT, EYES)], float)
    shares = []
    for path in paths:
        with Image.open(path) as picture:
            small = picture.convert("RGB").resize((64, 64), Image.Resampling.BOX)
        apart = np.linalg.norm(np.asarray(small, float)[..., None, :] - wanted, axis=-1)
        shares.append(float((apart.min(axis=-1) < 48).mean()))
    return sum(shares) / len(shares)


def lined_up(paths: Sequence[Path], target: Path) -> None:
    """The first eight pictures side by side."""
    sheet = Image.new("RGB", (128 * 8, 128))
    for place, path in enumerate(paths[:8]):
        with Image.open(path) as picture:
            sheet.paste(picture.convert("RGB").resize((128, 128), Image.Resampling.NEAREST), (128 * place, 0))
    sheet.save(target, optimize=True)


def trained(source: Path, home: Path, settings: Sequence[str], sheets: Mapping[str, Path]) -> dict[str, Any]:
    """A LoRA of the sixty, and what it draws; what stands in `sheets` for a side is written as one picture."""
    result = Foundry(home).create(PIXIE, "mini", pictures=[source], settings=settings)
    paths = RunPaths(result.dataset_dir, PIXIE.slug)
    scores = require_model(paths.evaluation_result, Evaluation, "evaluate")
    drawn = {
        side: [paths.evaluation_pictures() / picture.file for picture in scores.side(side).pictures]
        for side in ("before", "after")
    }
    for side, target in sheets.items():
        lined_up(drawn[side], target)
    return {
        "published": result.published,
        "verdict": result.assessment.model_dump(mode="json"),
        "likeness": {
            "of the set": scores.own_likeness,
            "before": scores.before.likeness,
            "after": scores.after.likeness,
            "without the trigger": scores.without_trigger.likeness,
        },
        "colours": {
            "of the set": round(share_of_colours(sorted(source.glob("*.png"))), 3),
            **{side: round(share_of_colours(files), 3) for side, files in drawn.items()},
        },
        "memorised_after": scores.after.memorised,
        "variety": {"before": scores.before.variety, "after": scores.after.variety},
        "strength": scores.strength,
        "step": scores.step,
        "seconds": {stage: round(seconds, 1) for stage, seconds in result.seconds.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--packages", type=Path, default=None, help="a folder with the npm packages installed"
    )
    parser.add_argument("--home", type=Path, default=None, help="keep everything in this folder")
    parser.add_argument("--set", action="append", default=[], dest="settings", metavar="SECTION.KEY=VALUE")
    parser.add_argument("--no-save", action="store_true", help="leave benchmarks/results as it is")
    options = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="lora-foundry-own-"))
    try:
        packages = options.packages or work / "packages"
        if options.packages is None:
            packages.mkdir()
            words = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", *PACKAGES]
            subprocess.run(words, cwd=packages, check=True, stdout=subprocess.DEVNULL)
        home = options.home or work / "home"
        paint(packages, work / "set")
        shutil.copytree(work / "set", work / "spoiled")
        planted = plant(packages, work / "spoiled")
        said, doubted = triaged(work / "spoiled", home / "spoiled", planted)
        shown = RESULTS if not options.no_save else work
        plain = {"before": shown / "own_pictures_before.png", "after": shown / "own_pictures_plain.png"}
        regularised = {"after": shown / "own_pictures_after.png"}
        without = trained(work / "set", home / "without", ("train.regularisation=0",), plain)
        learned = trained(work / "set", home / "with", options.settings, regularised)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    named = {name: code in said.get(name, ()) for name, code in planted.items()}
    table(
        ["planted", "expected", "said"],
        [[name, code, ", ".join(said.get(name, ())) or "nothing"] for name, code in planted.items()],
    )
    rows = {"without regularisation pictures": without, "with them": learned}
    for measure in ("likeness", "colours"):
        table([measure, *learned[measure]], [[name, *row[measure].values()] for name, row in rows.items()])
    figures = {
        "pictures": COUNT,
        "faults_named": sum(named.values()),
        "faults": len(planted),
        "good_pictures_doubted": len(doubted),
        "likeness": learned["likeness"],
        "colours": learned["colours"],
        "without_regularisation": {each: without[each] for each in ("likeness", "colours")},
    }
    details = {
        "art": {"style": "Pixel Art by DiceBear", "licence": "CC0 1.0", "packages": list(PACKAGES)},
        "triage": {"planted": {name: {"expected": code, "said": said.get(name, [])} for name, code in planted.items()},
                   "doubted": doubted},
        "settings": options.settings,
        "training": learned,
        "training_without_regularisation": without,
    }  # fmt: skip
    finish("own_pictures", figures, details, not options.no_save)


if __name__ == "__main__":
    main()
