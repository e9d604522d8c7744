"""Which way of learning brings the miniature model to a character in the fewest steps and seconds, and at which price in
obedience and in what appears without the trigger? One set of pictures a character for all ways, one change of the recipe at
a time, and every kept export measured on held-out prompts.

Each training's figures are kept in --home: run it again, or with other ways, to go on."""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any, cast

from characters import draw_character
from common import RESULTS, finish, table
from learning_methods import method

from lora_foundry import Character
from lora_foundry.backends.diffusers import DiffusersGenerator
from lora_foundry.backends.mini_instruments import MiniTagger
from lora_foundry.composition import RecipePorts
from lora_foundry.domain.dataset import TaggingResults
from lora_foundry.domain.held_out import evaluation_prompts, held_out_shots
from lora_foundry.domain.lora import LoraUse
from lora_foundry.domain.run import Run
from lora_foundry.families._shared.inspect import find_base
from lora_foundry.files.paths import RunPaths
from lora_foundry.files.storage import require_model
from lora_foundry.ports import TrainingJob
from lora_foundry.recipe_files import load_recipe
from lora_foundry.settings import Settings
from lora_foundry.stages.caption import step as caption
from lora_foundry.stages.curate import step as curate
from lora_foundry.stages.evaluate.scoring import EvaluationMetrics, score
from lora_foundry.stages.generate import step as generate
from lora_foundry.stages.train.regularisation import regularisation_pictures
from lora_foundry.stages.train.step import collect_images
from lora_foundry.trainer.trainer import InProcessTrainer

WANTED = 0.85
_ALIKE = (
    "evaluate.prompts=12", "evaluate.seeds=1", "generate.rounds=1", "generate.steps=8", "train.saves=5",
    "train.learning_rate=1e-3",
)  # fmt: skip
_USUAL = "rate 1e-3"  # what all ways are compared with
_UNCALLED = 6  # pictures without the trigger, of each export

# What is changed of the recipe `mini` with `_ALIKE`, in the fewest places that make the point; a word without "=" is a way of
# `learning_methods`, a number after it its value.
WAYS: dict[str, tuple[str, ...]] = {
    _USUAL: (),
    "rate 1e-3, steps x2": ("steps x2",),
    "rate 2e-3": ("train.learning_rate=2e-3",),
    "rate 3e-3": ("train.learning_rate=3e-3",),
    "rate 5e-4": ("train.learning_rate=5e-4",),
    "rank 4": ("train.rank=4", "train.alpha=4"),
    "rank 64": ("train.rank=64", "train.alpha=64"),
    "alpha 64 (rsLoRA)": ("train.alpha=64",),
    "alpha 64 (rsLoRA), rate 5e-4": ("train.alpha=64", "train.learning_rate=5e-4"),
    "LoRA+ 4": ("lora_plus 4",),
    "LoRA+ 16": ("lora_plus 16",),
    "Muon 1e-3": ("muon",),
    "Muon 3e-3": ("muon", "train.learning_rate=3e-3"),
    "LoRA-Muon 0.05": ("lora_muon", "train.learning_rate=0.05"),
    "LoRA-Muon 0.2": ("lora_muon", "train.learning_rate=0.2"),
    "T-LoRA": ("t_lora",),
    "DoRA": ('train.network="dora"',),
    "down from the SVD": ("svd_down",),
    "PiSSA": ("pissa",),
    "PiSSA, rate 3e-4": ("pissa", "train.learning_rate=3e-4"),
    "OFT 1e-3": ("oft",),
    "OFT 4e-3": ("oft", "train.learning_rate=4e-3"),
    "more noise": ("timesteps 0.5",),
    "less noise": ("timesteps 2",),
    "middle noise (logit-normal)": ("timesteps 0",),
    "attention only": ('train.targets=["attention"]',),
    "text encoder 1e-4": ("train.text_encoder_rate=1e-4",),
    "regularisation 0": ("train.regularisation=0",),
    "regularisation 10": ("train.regularisation=10",),
    "regularisation counts half": ("train.regularisation_weight=0.5",),
    "constant rate": ('train.lr_schedule="constant"',),
    "Prodigy": ('train.optimizer="prodigy"', "train.learning_rate=1.0"),
    "rate 3e-3, down from the SVD": ("svd_down", "train.learning_rate=3e-3"),
    # The same number of pictures in other batches; and the same number of steps.
    "batch 1, steps x4": ("train.batch_size=1", "steps x4"),
    "batch 2, steps x2": ("train.batch_size=2", "steps x2"),
    "batch 8, steps / 2": ("train.batch_size=8", "steps x0.5"),
    "batch 8, steps / 2, rate 2e-3": ("train.batch_size=8", "steps x0.5", "train.learning_rate=2e-3"),
    "batch 16, steps / 4, rate 2e-3": ("train.batch_size=16", "steps x0.25", "train.learning_rate=2e-3"),
}


def prepare(character: Character, way: str, seed: int, options: argparse.Namespace) -> tuple[Run, Any]:
    """The run of one way on a set that is drawn once for all that have as many regularisation pictures."""
    changes = [change for change in (*options.settings, *WAYS[way]) if "=" in change]
    factor = _value(way, "steps", 1.0)
    changes = [*_ALIKE, f"train.steps={round(options.steps * factor)}", *changes]
    recipe = load_recipe("mini", [*changes, f"seed={seed}"])
    folder = options.home / "sets" / f"{character.name}-{recipe.train.regularisation}"
    run = Run(character=character, recipe=recipe, dataset_dir=folder, lora_dir=options.home, output_name="x")
    ports = RecipePorts(recipe, find_base("mini"), Settings())
    for stage in (generate, curate, caption):
        cast(Any, stage).run(run, ports, lambda event: None)
    return run, ports


def _value(way: str, word: str, otherwise: float) -> float:
    """The number behind `word` among what a way changes."""
    for change in WAYS[way]:
        name, _, number = change.partition(" ")
        if name == word and "=" not in change:
            return float(number.removeprefix("x") or 0)
    return otherwise


def measure(run: Run, ports: Any, way: str, training_seed: int, workdir: Path) -> dict[str, Any]:
    """Trains and scores every kept export: identity and adherence with the trigger, and identity without it."""
    paths = RunPaths(run.dataset_dir, run.character.slug)
    tagged = require_model(paths.tagging_results, TaggingResults, "caption")
    images = collect_images(run, paths, tagged)
    images += regularisation_pictures(run, images, ports, lambda event: None)
    settings = run.recipe.train.model_copy(update={"seed": training_seed, "sample_prompts": ()})
    job = TrainingJob(images, settings, run.character.trigger, workdir / "lora.safetensors", workdir, {})
    own = next((change.split(" ")[0] for change in WAYS[way] if "=" not in change), "")
    own = "" if own == "steps" else own
    started = time.process_time()
    with method(own, _value(way, own, 0.0)):
        trained = InProcessTrainer(find_base("mini"), "cpu").train(job, lambda event: None)
    seconds = time.process_time() - started
    generator = DiffusersGenerator(find_base("mini"), run.recipe.generate, "cpu")
    rows = [
        {"step": saved.step, "seconds": round(seconds * saved.step / trained.steps, 1)}
        | scores(run, generator, saved.path)
        for saved in trained.saved
    ]
    generator.close()
    return {"seconds": round(seconds, 1), "steps": trained.steps, "rows": rows}


def scores(run: Run, generator: DiffusersGenerator, lora: Path) -> dict[str, float | None]:
    """Of one export: identity and adherence on held-out prompts that call the character, identity where none does."""
    tagger = MiniTagger()
    metrics = EvaluationMetrics(tagger.understand(run.character.tags), tagger, None, None)
    shots = held_out_shots(run.recipe.shots, run.recipe.evaluate.prompts, run.recipe.seed, [])
    found: dict[str, float | None] = {}
    for side, name in (("after", "identity"), ("without_trigger", "uncalled")):
        records = evaluation_prompts(run.character, run.recipe, shots, "x", cast(Any, side))
        records = records if side == "after" else records[:_UNCALLED]
        batches = [[record.request for record in records[n : n + 6]] for n in range(0, len(records), 6)]
        pictures = [made.image for made in generator.generate(batches, LoraUse(path=lora))]
        row = score([record.file for record in records], records, pictures, metrics)
        found[name] = row.identity
        if side == "after":
            found["adherence"] = row.adherence
    return found


def at_identity(run: dict[str, Any], wanted: float, key: str) -> float | None:
    """What `key` was when identity came to `wanted`, between two exports on a straight line; None where it did not."""
    # 0.2 is what the base draws of a character by chance, before any step.
    before = {"identity": 0.2, "step": 0, "seconds": 0.0, "uncalled": None, "adherence": None}
    for row in run["rows"]:
        if row["identity"] >= wanted:
            share = (wanted - before["identity"]) / (row["identity"] - before["identity"])
            low = row[key] if before[key] is None else before[key]
            return cast(float, low + share * (row[key] - low))
        before = row
    return None


def summary(way: str, runs: dict[str, dict[str, Any]], usual: dict[str, dict[str, Any]]) -> list[object]:
    """One row of the table: means over characters and seeds, and how many pictures fewer than the usual way it was
    shown, on the same ones, with the standard error. A training that does not get there counts with its whole length."""

    def average(values: Iterable[float | None]) -> object:
        known = [value for value in values if value is not None]
        return round(mean(known), 3) if known else "-"

    shown = {key: reached(run, "step", "steps") * _batch(way) for key, run in runs.items()}
    before = {key: reached(run, "step", "steps") * _batch(_USUAL) for key, run in usual.items()}
    spared = [before[key] - shown[key] for key in shown if key in before]
    whole = mean([before[key] for key in shown if key in before])
    error = round(stdev(spared) / len(spared) ** 0.5 / whole, 2) if len(spared) > 1 else "-"
    there = sum(at_identity(run, WANTED, "step") is not None for run in runs.values())
    last = [run["rows"][-1] for run in runs.values()]
    return [
        way,
        f"{there}/{len(runs)}",
        round(mean(shown.values())),
        f"{mean(spared) / whole:.2f} ±{error}" if way != _USUAL else "-",
        average(reached(run, "seconds", "seconds") for run in runs.values()),
        *(
            average(at_identity(run, WANTED, key) for run in runs.values())
            for key in ("adherence", "uncalled")
        ),
        *(average(row[key] for row in last) for key in ("identity", "adherence", "uncalled")),
    ]


def reached(run: dict[str, Any], key: str, whole: str) -> float:
    """`key` where identity came to `WANTED`, or `whole` of the training where it did not."""
    found = at_identity(run, WANTED, key)
    return cast(float, run[whole]) if found is None else found


def _batch(way: str) -> int:
    changes = [change for change in WAYS[way] if "=" in change]
    return load_recipe("mini", changes).train.samples_per_step


def read(home: Path, way: str) -> dict[str, dict[str, Any]]:
    """The finished trainings of one way, by character and seed."""
    return {path.stem: json.loads(path.read_text()) for path in sorted((home / "runs" / way).glob("*.json"))}


def characters(options: argparse.Namespace) -> Sequence[Character]:
    rng = random.Random(options.seed)
    return [draw_character(rng) for _ in range(options.characters)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="draws the characters")
    parser.add_argument("--characters", type=int, default=8)
    parser.add_argument("--trainings", type=int, default=2, help="of each character, with seeds of their own")
    parser.add_argument("--steps", type=int, default=160)
    parser.add_argument("--ways", nargs="*", default=list(WAYS))
    parser.add_argument("--set", action="append", default=[], dest="settings", help="for all ways alike")
    parser.add_argument("--minutes", type=float, default=1e9, help="begin no training after so many minutes")
    parser.add_argument("--home", type=Path, required=True, help="where the sets and the trainings are kept")
    parser.add_argument("--name", default="", help="store the table as benchmarks/results/<name>.json")
    options = parser.parse_args()
    started = time.monotonic()
    for training_seed in range(options.trainings):
        for way in options.ways:
            for index, character in enumerate(characters(options)):
                stored = (
                    options.home / "runs" / way.replace("/", "by") / f"{character.name}-{training_seed}.json"
                )
                if stored.exists() or time.monotonic() - started > 60 * options.minutes:
                    continue
                stored.parent.mkdir(parents=True, exist_ok=True)
                run, ports = prepare(character, way, options.seed + index, options)
                workdir = options.home / "trainings" / stored.parent.name / stored.stem
                stored.write_text(json.dumps(measure(run, ports, way, training_seed, workdir)))
                print(way, stored.stem, json.loads(stored.read_text())["rows"][-1], flush=True)
    found = {way: read(options.home, way.replace("/", "by")) for way in options.ways}
    rows = [summary(way, runs, found[_USUAL]) for way, runs in found.items() if runs]
    header = [
        "way",
        f"reached {WANTED}",
        "pictures",
        "fewer",
        "CPU s",
        "adherence then",
        "uncalled then",
        "identity",
        "adherence",
        "uncalled",
    ]
    table(header, rows)
    figures = {str(row[0]): dict(zip(header[1:], row[1:], strict=True)) for row in rows}
    details = {
        "seed": options.seed,
        "alike": [*_ALIKE, *options.settings],
        "steps": options.steps,
        "runs": found,
    }
    finish(options.name, figures, details, bool(options.name) and RESULTS.is_dir())


if __name__ == "__main__":
    main()
