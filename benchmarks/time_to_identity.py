"""Seconds of training until the miniature model knows a character well enough: our recipe beside the settings that the
original system gave to sd-scripts (rate 1e-4, batch 1, rank 32, cosine with restarts, min-SNR 5, whole captions), in the
same loop on the same pictures. Seconds are those of the processor, so that a busy machine changes little."""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from pathlib import Path
from typing import Any, cast

from characters import draw_character
from common import finish, table

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
from lora_foundry.stages.train.step import collect_images
from lora_foundry.trainer.trainer import InProcessTrainer

SIDES: dict[str, tuple[str, ...]] = {
    "ours": ("train.saves=16",),
    "sd-scripts-like": (
        "caption.prune_identity=false", "train.learning_rate=1e-4", "train.batch_size=1", "train.rank=32",
        "train.alpha=16", "train.lr_schedule=cosine_with_restarts", "train.restarts=1", "train.warmup_steps=100",
        "train.min_snr_gamma=5", "train.weight_decay=0.01", "train.saves=10",
    ),
}  # fmt: skip


def prepare(character: Character, side: str, options: argparse.Namespace, home: Path) -> Run:
    """The set of pictures, made once, and captioned in the side's way."""
    changes = ["evaluate.prompts=12", "evaluate.seeds=1", f"seed={options.seed}", *SIDES[side]]
    if side != "ours":
        changes.append(f"train.steps={options.steps}")
    recipe = load_recipe("mini", changes)
    run = Run(
        character=character,
        recipe=recipe,
        dataset_dir=home / f"{character.name}-{side}",
        lora_dir=home,
        output_name="x",
    )
    ports = RecipePorts(recipe, find_base("mini"), Settings())
    for stage in (generate, curate, caption):
        cast(Any, stage).run(run, ports, lambda event: None)
    ports.close()
    return run


def train(run: Run) -> tuple[Any, float]:
    """The trained LoRA with what was kept on the way, and the processor's seconds from start to end."""
    paths = RunPaths(run.dataset_dir, run.character.slug)
    tagged = require_model(paths.tagging_results, TaggingResults, "caption")
    workdir = run.dataset_dir / "training"
    images = collect_images(run, paths, tagged)
    job = TrainingJob(
        images, run.recipe.train, run.character.trigger, workdir / "lora.safetensors", workdir, {}
    )
    started = time.process_time()
    trained = InProcessTrainer(find_base("mini"), "cpu").train(job, lambda event: None)
    return trained, time.process_time() - started


def identity(run: Run, generator: DiffusersGenerator, lora: Path) -> float:
    """Share of identity traits that are right on held-out shots with the trigger word alone."""
    tagger = MiniTagger()
    metrics = EvaluationMetrics(tagger.understand(run.character.tags), tagger, None, None)
    shots = held_out_shots(run.recipe.shots, run.recipe.evaluate.prompts, run.recipe.seed, [])
    records = evaluation_prompts(run.character, run.recipe, shots, "x", "after")
    batches = [
        [record.request for record in records[first : first + 8]] for first in range(0, len(records), 8)
    ]
    pictures = [made.image for made in generator.generate(batches, LoraUse(path=lora))]
    return score([record.file for record in records], records, pictures, metrics).identity or 0.0


def measure(character: Character, side: str, options: argparse.Namespace, home: Path) -> dict[str, Any]:
    """Identity after each kept export, and the seconds to it."""
    run = prepare(character, side, options, home)
    trained, seconds = train(run)
    generator = DiffusersGenerator(find_base("mini"), run.recipe.generate, "cpu")
    rows = []
    for saved in trained.saved:
        found = identity(run, generator, saved.path)
        rows.append(
            {"step": saved.step, "seconds": round(seconds * saved.step / trained.steps, 1), "identity": found}
        )
        print(side, rows[-1], flush=True)
        if found >= options.wanted:
            break
    generator.close()
    reached = rows[-1]["seconds"] if rows[-1]["identity"] >= options.wanted else None
    return {"reached": reached, "seconds": round(seconds, 1), "steps": trained.steps, "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--wanted", type=float, default=0.75, help="the identity to reach")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--characters", type=int, default=1)
    parser.add_argument(
        "--steps", type=int, default=6000, help="of the other side; 40 pictures x 10 repeats x 15 epochs"
    )
    parser.add_argument("--home", type=Path, help="keep everything here, and go on from it")
    parser.add_argument("--no-save", action="store_true", help="leave benchmarks/results as it is")
    options = parser.parse_args()
    rng = random.Random(options.seed)
    results: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    with tempfile.TemporaryDirectory() as temporary:
        home = options.home or Path(temporary)
        for _ in range(options.characters):
            character = draw_character(rng)
            for side in SIDES:
                stored = home / f"{character.name}-{side}.json"
                if stored.exists():
                    results[side].append(json.loads(stored.read_text()))
                    continue
                results[side].append(measure(character, side, options, home))
                stored.write_text(json.dumps(results[side][-1]))
    means = {}
    for side, runs in results.items():
        # A side that does not get there took at least its whole time.
        means[side] = round(sum(run["reached"] or run["seconds"] for run in runs) / len(runs), 1)
    missed = {side: sum(run["reached"] is None for run in runs) for side, runs in results.items()}
    best = {
        side: max(row["identity"] for run in runs for row in run["rows"]) for side, runs in results.items()
    }
    table(
        ["settings", f"seconds to {options.wanted}", "not reached", "best identity"],
        [[side, means[side], missed[side], best[side]] for side in SIDES],
    )
    figures = {
        "wanted": options.wanted,
        "ours": means["ours"],
        "theirs": means["sd-scripts-like"],
        "ratio": round(means["ours"] / means["sd-scripts-like"], 3),
        "not_reached": missed,
    }
    finish("time_to_identity", figures, {"seed": options.seed, "runs": results}, not options.no_save)


if __name__ == "__main__":
    main()
