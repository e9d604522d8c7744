"""What choosing a checkpoint with fewer pictures saves and changes: the choice of finished runs is replayed on the pictures
that lie in their folders, nothing is drawn. Reads every run under the given folders that compared its checkpoints on all
their pictures, once with the recipe's tagger and once without one, and says how often the race chooses as all pictures do,
beside how often these choose the same when six of them are drawn by lot from themselves.

    python benchmarks/choosing.py FOLDER [FOLDER ...]
"""

from __future__ import annotations

import argparse
import random
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from common import finish, table
from PIL import Image

from lora_foundry.backends.mini_instruments import MiniEmbedder, MiniTagger
from lora_foundry.domain.evaluation import Candidate, Evaluation
from lora_foundry.domain.lora import LoraUse
from lora_foundry.domain.sections import EvaluateSection
from lora_foundry.files.images import read_record
from lora_foundry.stages.evaluate.choosing import Choice, ScoreWeights, clearly_best_of, rate
from lora_foundry.stages.evaluate.race import halves, race
from lora_foundry.stages.evaluate.scoring import (
    EvaluationMetrics,
    Observed,
    observe,
    own_likeness,
    summarise,
)

BASE = "base"


class Replay(NamedTuple):
    """The recorded pictures of one run's choice, by option; the base's under its own name."""

    options: list[Choice]
    observed: dict[str, list[Observed]]
    metrics: EvaluationMetrics
    own: float | None

    def rate(self, option: Choice, places: Sequence[int]) -> Candidate:
        """As the evaluation does."""
        row = summarise([self.observed[option.name][place] for place in places], self.metrics)
        variety = None
        if row.adherence is None:
            variety = summarise([self.observed[BASE][place] for place in places], self.metrics).variety
        return rate(option, row, ScoreWeights(self.own, variety, EvaluateSection()))

    def by(self, places: Sequence[int]) -> Choice:
        """What pictures at these places choose."""
        return clearly_best_of([(option, self.rate(option, places)) for option in self.options])


def opened(folder: Path) -> list[Image.Image]:
    return [Image.open(path).convert("RGB") for path in sorted(folder.glob("*.png"))]


def replays(folders: Sequence[Path], tagger: MiniTagger | None) -> Iterator[Replay]:
    """Of each run once, however often its folder was copied."""
    embedder, known = MiniEmbedder(), set[str]()
    for scores in sorted(path for folder in folders for path in folder.rglob("evaluation/scores.json")):
        evaluation = Evaluation.model_validate_json(scores.read_text(encoding="utf-8"))
        choice = scores.parent / "pictures" / "choice"
        if evaluation.trained_sha256 in known or evaluation.cast or not (choice / BASE).is_dir():
            continue
        known.add(evaluation.trained_sha256)
        options = [
            Choice(each.step, each.sha256, LoraUse(path=Path("lora"), strength=each.strength))
            for each in evaluation.candidates
        ]
        own = embedder.embed(opened(scores.parents[1] / "images"))
        metrics = EvaluationMetrics(traits=(), tagger=tagger, embedder=embedder, own=own)
        observed = {}
        for name in (BASE, *(option.name for option in options)):
            files = sorted((choice / name).glob("*.png"))
            records = [record for path in files if (record := read_record(path))]
            observed[name] = observe([path.name for path in files], records, opened(choice / name), metrics)
        counts = {len(each) for each in observed.values()}
        if len(options) > 1 and len(counts) == 1 and 0 not in counts:
            yield Replay(options, observed, metrics, own_likeness(own))


def replayed(run: Replay, chance: random.Random) -> dict[str, float]:
    """Of one run: pictures with and without the race, whether both choose alike, what the other choice costs in score on
    all pictures, and how often these agree with themselves."""
    total = len(run.observed[BASE])
    drawn = dict.fromkeys((option.name for option in run.options), 0)

    def draw(option: Choice, start: int, stop: int) -> None:
        drawn[option.name] = stop

    found = race(run.options, halves(total), draw, run.rate).best
    whole = run.by(range(total))
    score = {option: run.rate(option, range(total)).score for option in (found, whole)}
    again = [run.by([chance.randrange(total) for _ in range(total)]) == whole for _ in range(20)]
    return {
        "all": total * len(run.options),
        "raced": sum(drawn.values()),
        "same": float(found == whole),
        "lost": score[whole] - score[found],
        "agreement": statistics.mean(again),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--no-save", action="store_true", help="leave benchmarks/results as it is")
    options = parser.parse_args()
    figures: dict[str, dict[str, float]] = {}
    for name, tagger in (("tagger", MiniTagger()), ("no tagger", None)):
        chance = random.Random(0)
        rows = [replayed(run, chance) for run in replays(options.folders, tagger)]
        of = {key: np.array([row[key] for row in rows]) for key in rows[0]}
        figures[name] = {
            "runs": len(rows),
            "pictures drawn, share": round(float(of["raced"].sum() / of["all"].sum()), 3),
            "same choice": round(float(of["same"].mean()), 3),
            "all pictures agree with themselves": round(float(of["agreement"].mean()), 3),
            "score lost, mean": round(float(of["lost"].mean()), 4),
            "score lost, most": round(float(of["lost"].max()), 4),
        }
    table(["", *figures["tagger"]], [[name, *row.values()] for name, row in figures.items()])
    finish("choosing", figures, {}, not options.no_save)


if __name__ == "__main__":
    main()
