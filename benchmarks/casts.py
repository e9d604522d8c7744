"""Several characters in one LoRA: how much of each is learned, what one trigger brings of another (bleed), and how far the
base drifts. Casts of three random characters of the miniature world, every trait told; each variant trains the same sets
anew and is judged by the attribute reader.

    python benchmarks/casts.py --work DIR [--casts 10 --first 0] [--variants sjrdl]

Partial results are kept in `--work`, so a stopped run goes on where it was."""

from __future__ import annotations

import argparse
import json
import random
import shutil
import statistics
import tempfile
from pathlib import Path
from typing import Any

from characters import draw_character
from common import finish, table
from identity import LEAN, Clock, quiet

from lora_foundry import Foundry
from lora_foundry.composition import RecipePorts
from lora_foundry.domain.cast import Member
from lora_foundry.domain.character import Character
from lora_foundry.domain.evaluation import Evaluation
from lora_foundry.domain.run import Run
from lora_foundry.families._shared.inspect import find_base
from lora_foundry.pipeline import PIPELINE

# Each over the first: what it changes of the joint training. (s) trains the three LoRAs that the cast is compared with.
VARIANTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "s": ("each character in a LoRA of its own", ()),
    "j": ("joint, without regularisation pictures", ("train.regularisation=0",)),
    "r": ("joint: the recipe's defaults", ()),
    "w": ("joint, regularisation pictures count three times", ("train.regularisation_weight=3",)),
    "l": ("joint, twice the rank", ("train.rank=32", "train.alpha=32")),
    "h": ("joint, half the steps", ("train.steps=75",)),
}
MEASURE = ("model.tagger=mini", "evaluate.prompts=8", "evaluate.seeds=2", "evaluate.choose=false")
SCORES = ("identity", "bleed", "worst_bleed", "drift", "without_trigger", "adherence", "minutes")
BEFORE_TRAINING = ("generate", "curate", "caption")


class Bench:
    """One cast's variants, in one folder."""

    def __init__(self, number: int, members: int, work: Path, extra: tuple[str, ...]) -> None:
        rng = random.Random(f"cast-{number}")
        self.characters = [draw_character(rng) for _ in range(members)]
        self.name = f"Cast {number}"
        self.seed, self.extra, self.folder = number, extra, work / f"cast-{number:02d}"
        self.foundry = Foundry(work / "home")

    def run(self, variant: str) -> dict[str, Any]:
        """The variant's figures, from its file where it was run before."""
        path = self.folder / f"{variant}.json"
        if not path.exists():
            figures = self._alone() if variant == "s" else self._joint(variant)
            aside = path.with_suffix(".part")
            aside.write_text(json.dumps(figures, indent=1))
            aside.rename(path)
        return dict(json.loads(path.read_text()))

    def _prepare(self, character: Character, folder: Path, variant: str, members: bool) -> Run:
        changes = [f"seed={self.seed}", *LEAN, *MEASURE, *VARIANTS[variant][1], *self.extra]
        told = [Member(character=each) for each in self.characters] if members else []
        run, _ = self.foundry.prepare(character, "mini", settings=changes, members=told)
        return run.model_copy(update={"dataset_dir": folder, "lora_dir": folder / "loras"})

    def _sets(self) -> Path:
        """The members' sets, drawn once for all variants."""
        folder = self.folder / "sets"
        run = self._prepare(Character(name=self.name), folder, "r", members=True)
        self._stages(run, BEFORE_TRAINING)
        return folder

    def _stages(self, run: Run, names: tuple[str, ...]) -> Any:
        ports = RecipePorts(run.recipe, find_base("mini"), self.foundry.settings)
        result: Any = None
        for stage in PIPELINE:
            if stage.name in names:
                result = stage.load()(run, ports, quiet)
        ports.close()
        return result

    def _joint(self, variant: str) -> dict[str, Any]:
        folder = self.folder / variant
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self._sets(), folder)
        run = self._prepare(Character(name=self.name), folder, variant, members=True)
        with Clock() as clock:
            found: Evaluation = self._stages(run, ("train", "evaluate"))
        assert found.cast is not None
        worst = found.cast.worst_bleed
        return {
            "identity": found.after.identity,
            "bleed": found.cast.mean_bleed,
            "worst_bleed": 0.0 if worst is None else worst.share - worst.chance,
            "drift": found.cast.drift,
            "without_trigger": found.without_trigger.identity,
            "adherence": found.after.adherence,
            "minutes": round(clock.seconds / 60, 2),
            "cast": found.cast.model_dump(mode="json"),
        }

    def _alone(self) -> dict[str, Any]:
        """The same sets, one LoRA each; nothing can bleed between them."""
        rows, seconds = list[Evaluation](), 0.0
        for character in self.characters:
            folder = self.folder / "s" / character.name
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(self._sets() / "members" / character.name, folder)
            run = self._prepare(character, folder, "s", members=False)
            with Clock() as clock:
                rows.append(self._stages(run, ("train", "evaluate")))
            seconds += clock.seconds

        def mean(values: list[float | None]) -> float:
            return round(statistics.mean(value or 0.0 for value in values), 4)

        return {
            "identity": mean([each.after.identity for each in rows]),
            "bleed": 0.0,
            "worst_bleed": 0.0,
            "drift": mean([(each.before.adherence or 0.0) - (each.after.adherence or 0.0) for each in rows]),
            "without_trigger": mean([each.without_trigger.identity for each in rows]),
            "adherence": mean([each.after.adherence for each in rows]),
            "minutes": round(seconds / 60, 2),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--casts", type=int, default=10)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--members", type=int, default=3)
    parser.add_argument("--variants", default="".join(VARIANTS))
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "lora-foundry-casts")
    parser.add_argument("--set", action="append", default=[], dest="settings", metavar="SECTION.KEY=VALUE")
    parser.add_argument("--no-save", action="store_true", help="leave benchmarks/results as it is")
    options = parser.parse_args()
    done: dict[str, dict[str, Any]] = {variant: {} for variant in options.variants}
    for number in range(options.first, options.casts):
        bench = Bench(number, options.members, options.work, tuple(options.settings))
        for variant in options.variants:
            figures = done[variant][bench.name] = bench.run(variant)
            shown = ", ".join(f"{score} {figures[score]:.3f}" for score in SCORES)
            print(f"{bench.name} {variant}: {shown}", flush=True)
    means = {
        variant: {score: round(statistics.mean(row[score] for row in rows.values()), 3) for score in SCORES}
        for variant, rows in done.items()
    }
    table(["variant", *SCORES], [[VARIANTS[each][0], *row.values()] for each, row in means.items()])
    about = {
        "casts": options.casts - options.first,
        "members": options.members,
        "settings": [*LEAN, *MEASURE, *options.settings],
        "runs": done,
    }
    finish("casts", means, about, not options.no_save)


if __name__ == "__main__":
    main()
