"""Which settings teach the miniature model a character in the fewest seconds, at which price in obedience and in what
appears without the trigger: one set of pictures a character, one change of the recipe at a time, every kept export
measured on held-out prompts.

Results are stored after each training, so that the table can be made in pieces: run it again to go on."""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from characters import draw_character
from common import RESULTS, finish, table

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

WANTED = 0.8
PROMPTS = ("evaluate.prompts=16", "evaluate.seeds=2")

# Each row changes the recipe in the fewest places that make its point. The first is the recipe as it ships.
VARIATIONS: dict[str, tuple[str, ...]] = {
    "mini": (),
    "regularisation 40": ("train.regularisation=40",),
    "regularisation 40, lr 2e-3": ("train.regularisation=40", "train.learning_rate=2e-3"),
    "regularisation 20": ("train.regularisation=20",),
    "attention only": ('train.targets=["attention"]',),
    "rank 8": ("train.rank=8", "train.alpha=8"),
    "lr 5e-4": ("train.learning_rate=5e-4",),
    "lr 2e-3": ("train.learning_rate=2e-3",),
    "caption dropout 0.1": ("train.caption_dropout=0.1",),
    "min-SNR 5": ("train.min_snr_gamma=5",),
    "batch 8": ("train.batch_size=8",),
    "rank 32": ("train.rank=32", "train.alpha=32"),
    "captions not pruned": ("caption.prune_identity=false",),
    "text encoder 1e-4": ("train.text_encoder_rate=1e-4",),
    "ema 0.98": ("train.ema=0.98",),
    "prodigy": ('train.optimizer="prodigy"', "train.learning_rate=1.0"),
}


def prepare(character: Character, settings: Sequence[str], seed: int, home: Path) -> tuple[Run, Any]:
    """The run of one variation on a set that is made once for each way of captioning."""
    recipe = load_recipe("mini", [*PROMPTS, f"seed={seed}", f"train.seed={seed}", "train.saves=8", *settings])
    pruned = "pruned" if recipe.caption.prune_identity else "whole"
    folder = home / f"{character.name}-{pruned}"
    run = Run(character=character, recipe=recipe, dataset_dir=folder, lora_dir=home, output_name="x")
    ports = RecipePorts(recipe, find_base("mini"), Settings())
    for stage in (generate, curate, caption):
        cast(Any, stage).run(run, ports, lambda event: None)
    return run, ports


def measure(run: Run, ports: Any, workdir: Path) -> dict[str, Any]:
    """Trains and scores every kept export: identity and adherence with the trigger, and what appears without it."""
    paths = RunPaths(run.dataset_dir, run.character.slug)
    tagged = require_model(paths.tagging_results, TaggingResults, "caption")
    images = collect_images(run, paths, tagged)
    images += regularisation_pictures(run, ports, lambda event: None)
    job = TrainingJob(
        images, run.recipe.train, run.character.trigger, workdir / "lora.safetensors", workdir, {}
    )
    started = time.process_time()
    trained = InProcessTrainer(find_base("mini"), "cpu").train(job, lambda event: None)
    seconds = time.process_time() - started
    shots = held_out_shots(run.recipe.shots, run.recipe.evaluate.prompts, run.recipe.seed, [])
    tagger = MiniTagger()
    metrics = EvaluationMetrics(tagger.understand(run.character.tags), tagger, None, None)
    generator = DiffusersGenerator(find_base("mini"), run.recipe.generate, "cpu")
    rows = []
    for saved in trained.saved:
        row: dict[str, Any] = {"step": saved.step, "seconds": round(seconds * saved.step / trained.steps, 1)}
        last = saved.step == trained.steps
        for side in ("after", "without_trigger") if last else ("after",):
            records = evaluation_prompts(run.character, run.recipe, shots, "x", cast(Any, side))
            if not last:
                records = records[::2]
            batches = [[record.request for record in records[n : n + 8]] for n in range(0, len(records), 8)]
            pictures = [made.image for made in generator.generate(batches, LoraUse(path=saved.path))]
            scores = score([record.file for record in records], records, pictures, metrics)
            row[side] = scores.identity
            if side == "after":
                row["adherence"] = scores.adherence
                row["expression"] = scores.adherence_by_attribute.get("expression")
        rows.append(row)
    generator.close()
    return {"loss": trained.final_loss, "seconds": round(seconds, 1), "saves": rows}


def summary(name: str, runs: list[dict[str, Any]]) -> list[object]:
    """One row of the table: means over the characters."""

    def mean(values: list[float | None]) -> object:
        known = [value for value in values if value is not None]
        return round(sum(known) / len(known), 3) if known else "-"

    reached = [next((row["seconds"] for row in run["saves"] if row["after"] >= WANTED), None) for run in runs]
    last = [run["saves"][-1] for run in runs]
    return [
        name,
        len(runs),
        f"{mean(reached)} ({sum(value is not None for value in reached)}/{len(runs)})",
        *(
            mean([row[key] for row in last])
            for key in ("after", "adherence", "expression", "without_trigger")
        ),
        mean([run["seconds"] for run in runs]),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--characters", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=9, help="begin no training after so many minutes")
    parser.add_argument("--only", nargs="*", default=None, help="these variations alone")
    parser.add_argument(
        "--set", action="append", default=[], dest="settings", help="for all variations alike"
    )
    parser.add_argument("--home", type=Path, required=True, help="where the sets and the trainings are kept")
    options = parser.parse_args()
    options.home.mkdir(parents=True, exist_ok=True)
    store = options.home / "settings.json"
    results: dict[str, list[dict[str, Any]]] = json.loads(store.read_text()) if store.exists() else {}
    started = time.monotonic()
    for name in options.only or VARIATIONS:
        rng = random.Random(options.seed)
        for index in range(options.characters):
            character = draw_character(rng)
            done = results.setdefault(name, [])
            if len(done) > index or time.monotonic() - started > 60 * options.minutes:
                continue
            changes = (*options.settings, *VARIATIONS[name])
            run, ports = prepare(character, changes, options.seed + index, options.home)
            done.append(measure(run, ports, options.home / "trainings" / f"{name}-{index}"))
            store.write_text(json.dumps(results, indent=1))
            print(name, character.name, done[-1]["saves"][-1], flush=True)
    rows = [summary(name, runs) for name, runs in results.items() if runs]
    header = [
        "settings",
        "characters",
        f"s to {WANTED}",
        "identity",
        "adherence",
        "expression",
        "without_trigger",
        "s",
    ]
    table(header, rows)
    complete = all(len(results.get(name, [])) >= options.characters for name in VARIATIONS)
    figures = {str(row[0]): dict(zip(header[1:], row[1:], strict=True)) for row in rows}
    finish(
        "settings",
        figures,
        {"seed": options.seed, "alike": options.settings, "complete": complete, "runs": results},
        RESULTS.is_dir(),
    )


if __name__ == "__main__":
    main()
