"""One character, or forty cousins? Characters of the miniature world whose description names only half of their traits;
the rest is the pipeline's to settle on. Each variant adds one thing to the one before, all are judged by the attribute
reader, which no variant may look at: what looks at pictures for (f) is another reader, trained apart
(`mini_world/second_reader`). Partial results are kept in `--work`, so a stopped run goes on where it was."""

from __future__ import annotations

import argparse
import json
import random
import shutil
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from common import finish, table
from PIL import Image

from lora_foundry.backends.mini_instruments import MiniTagger
from lora_foundry.composition import RecipePorts
from lora_foundry.domain.character import Character
from lora_foundry.domain.dataset import GenerationMetadata, ImageRequest, PictureRecord
from lora_foundry.domain.evaluation import Evaluation
from lora_foundry.domain.held_out import evaluation_prompts, held_out_shots
from lora_foundry.domain.lora import LoraUse
from lora_foundry.domain.picture_plan import prompt_of
from lora_foundry.domain.run import ProgressEvent, Run
from lora_foundry.domain.shots import plan_shots
from lora_foundry.families._shared.inspect import find_base
from lora_foundry.files.images import load_picture
from lora_foundry.files.paths import RunPaths
from lora_foundry.files.storage import require_model
from lora_foundry.mini import world
from lora_foundry.mini.instruments import AttributeReader
from lora_foundry.pipeline import generate
from lora_foundry.ports import Trait
from lora_foundry.recipe_files import load_recipe
from lora_foundry.settings import Settings
from lora_foundry.stages.caption import step as caption
from lora_foundry.stages.curate import step as curate
from lora_foundry.stages.evaluate import step as evaluate
from lora_foundry.stages.evaluate.scoring import mean_share, shares_right
from lora_foundry.stages.train import step as train

CONSONANTS, VOWELS = "bdfgklmnprstvz", "aeiou"
PROMPTS, SEEDS = 12, 2  # of the judge's exam; the pipeline's own is smaller
SCORES = ("identity", "consistency", "adherence", "leak", "minutes")
VARIANTS = {
    "a": "the description alone, no LoRA",
    "b": "the original way: one round, its captions, last checkpoint",
    "c": "+ curation by identity",
    "d": "+ pruned captions",
    "e": "+ chosen checkpoint and strength",
    "f": "+ rounds that settle in words what is open",
    "g": "+ captions that look: the recipe's defaults",
}
# Alike for all variants: leaner than the shipped recipe, for a small machine. The judge is no instrument of the
# pipeline: model.tagger is none.
LEAN = (
    "model.tagger=none", "generate.images=24", "generate.steps=10", "train.steps=150", "train.batch_size=6",
    "train.learning_rate=2e-3", "train.warmup_steps=10", "train.saves=3", "evaluate.prompts=6", "evaluate.seeds=1",
)  # fmt: skip
UNCURATED = (
    "curate.identity=false", "curate.budget=1", "curate.min_sharpness=0", "curate.min_contrast=0",
    "curate.duplicate_difference=0", "curate.duplicate_distance=0",
)  # fmt: skip
KEPT, PRUNED = ("caption.prune_identity=false",), ("caption.prune_identity=true",)
CURATED = ("curate.identity=true", "curate.fill=0.5")
ONE_ROUND = ("generate.rounds=1", "generate.complete_description=false")  # else they are the recipe's
SECOND_READER = Path(__file__).parents[1] / "mini_world" / "second_reader"


class SecondEye(MiniTagger):
    """Says which features pictures show, by the second reader."""

    @cached_property
    def _reader(self) -> AttributeReader:
        return AttributeReader.load(folder=SECOND_READER)


class Subject(NamedTuple):
    """A character, and the traits that its description names."""

    character: Character
    described: tuple[Trait, ...]
    seed: int


def draw_subject(rng: random.Random, seed: int) -> Subject:
    """A made-up name and one value of four of the eight identity traits; an outfit's colour needs the outfit."""
    name = "".join(rng.choice(CONSONANTS) + rng.choice(VOWELS) for _ in range(3)).capitalize()
    traits = {trait: rng.choice(values) for trait, values in world().identity.items()}
    chosen = set(rng.sample([trait for trait in traits if trait != "outfit_color"], 4))
    if "outfit" in chosen:  # "red dress" names two
        chosen = {*sorted(chosen - {"outfit"})[:2], "outfit", "outfit_color"}
    words = [traits[trait] for trait in traits if trait in chosen and not trait.startswith("outfit")]
    if "outfit" in chosen:
        words.append(f"{traits['outfit_color']} {traits['outfit']}")
    described = tuple(Trait(trait, traits[trait]) for trait in traits if trait in chosen)
    return Subject(Character(name=name, description=", ".join(words)), described, seed)


class Bench:
    """One character's variants, in one folder."""

    def __init__(self, subject: Subject, work: Path, extra: Sequence[str]) -> None:
        self.subject, self.extra = subject, tuple(extra)
        self.folder = work / subject.character.slug
        self.settings = Settings(home=work / "home")
        self._judge = MiniTagger()

    def make(self, variant: str, settings: Sequence[str]) -> tuple[Run, RecipePorts]:
        recipe = load_recipe("mini", [f"seed={self.subject.seed}", *LEAN, *settings, *self.extra])
        run = Run(
            character=self.subject.character,
            recipe=recipe,
            dataset_dir=self.folder / variant,
            lora_dir=self.folder / "loras",
            output_name=self.subject.character.slug,
        )
        ports = RecipePorts(recipe, find_base("mini"), self.settings)
        ports.captioners = (SecondEye(),) if recipe.generate.complete_description else ()
        return run, ports

    def run(self, variant: str) -> dict[str, Any]:
        """The variant's figures, from its file where it was run before."""
        path = self.folder / f"{variant}.json"
        if not path.exists():
            figures = getattr(self, f"_variant_{variant}")()
            path.parent.mkdir(parents=True, exist_ok=True)
            aside = path.with_suffix(".part")
            aside.write_text(json.dumps(figures, indent=1))
            aside.rename(path)
        return dict(json.loads(path.read_text()))

    def _variant_a(self) -> dict[str, Any]:
        run, ports = self.make("a", (*UNCURATED, *ONE_ROUND))
        with Clock() as clock:
            images, records = self._exam(run, ports, None, self.subject.character.description)
        majority = self._majority("b")
        figures = self._figures(images, records, majority, clock.seconds, 0.0)
        return figures | {"leak": self._leak(run, ports, None, figures["target"])}  # what chance gives

    def _variant_b(self) -> dict[str, Any]:
        return self._trained("b", (*UNCURATED, *KEPT, *ONE_ROUND), copy_of=None)

    def _variant_c(self) -> dict[str, Any]:
        return self._trained("c", (*CURATED, *KEPT, *ONE_ROUND), copy_of="b")

    def _variant_d(self) -> dict[str, Any]:
        return self._trained("d", (*CURATED, *PRUNED, *ONE_ROUND), copy_of="c")

    def _variant_e(self) -> dict[str, Any]:
        self.run("d")
        return self._chosen("e", (*CURATED, *PRUNED, *ONE_ROUND), copy_of="d")

    def _variant_f(self) -> dict[str, Any]:
        return self._chosen("f", (*CURATED, *PRUNED), copy_of=None)

    def _variant_g(self) -> dict[str, Any]:
        return self._chosen("g", (*CURATED, *PRUNED), copy_of=None)

    def _trained(self, variant: str, settings: Sequence[str], copy_of: str | None) -> dict[str, Any]:
        run, ports, seconds = self._dataset(variant, settings, copy_of)
        with Clock() as clock:
            train.run(run, ports, quiet)
        lora = LoraUse(path=RunPaths(run.dataset_dir, run.character.slug).trained_lora)
        images, records = self._exam(run, ports, lora, run.character.trigger)
        majority = self._majority(variant)
        figures = self._figures(images, records, majority, seconds + clock.seconds, seconds)
        return figures | {"leak": self._leak(run, ports, lora, figures["target"])}

    def _chosen(self, variant: str, settings: Sequence[str], copy_of: str | None) -> dict[str, Any]:
        run, ports, seconds = self._dataset(variant, settings, copy_of)
        paths = RunPaths(run.dataset_dir, run.character.slug)
        with Clock() as clock:
            train.run(run, ports, quiet)
            evaluate.run(run, ports, quiet)
        scores = require_model(paths.evaluation_result, Evaluation, "evaluate")
        majority = self._majority(variant)
        uses = {
            "last": LoraUse(path=paths.trained_lora),
            "chosen": LoraUse(path=paths.chosen_lora, strength=scores.strength),
        }
        rows = {}
        for name, use in uses.items():
            images, records = self._exam(run, ports, use, run.character.trigger)
            rows[name] = self._figures(images, records, majority, seconds + clock.seconds, seconds)
            rows[name]["leak"] = self._leak(run, ports, use, rows[name]["target"])
        chosen = {"step": scores.step, "strength": scores.strength}
        candidates = [each.model_dump(mode="json") for each in scores.candidates]
        metadata = require_model(paths.generation_metadata, GenerationMetadata, "generate")
        rounds = [each.model_dump(mode="json") for each in metadata.rounds]
        more = {"last": rows["last"], "choice": chosen, "candidates": candidates, "rounds": rounds}
        return {**rows["chosen"], **more}

    def _dataset(
        self, variant: str, settings: Sequence[str], copy_of: str | None
    ) -> tuple[Run, RecipePorts, float]:
        """The captioned set, from the pictures of an earlier variant where there is one; with the seconds it took."""
        run, ports = self.make(variant, settings)
        before = 0.0
        if copy_of is not None:
            before = float(self.run(copy_of)["dataset_seconds"])
            if not run.dataset_dir.exists():
                aside = run.dataset_dir.with_name(f"{variant}.part")
                shutil.rmtree(aside, ignore_errors=True)
                shutil.copytree(self.folder / copy_of, aside)
                aside.rename(run.dataset_dir)
        with Clock() as clock:
            generate(run, ports, quiet)
            curate.run(run, ports, quiet)
            if variant != "g":
                ports.captioners = ()  # so that (f) differs from (e) in one thing
            caption.run(run, ports, quiet)
        return run, ports, before + clock.seconds

    def _exam(
        self, run: Run, ports: RecipePorts, lora: LoraUse | None, called: str
    ) -> tuple[list[Image.Image], list[PictureRecord]]:
        """Pictures on held-out shots and seeds; `called` stands where the description would."""
        measured = run.recipe.evaluate.model_copy(update={"prompts": PROMPTS, "seeds": SEEDS})
        recipe = run.recipe.model_copy(update={"evaluate": measured})
        trained = plan_shots(recipe.shots, recipe.generate.images, recipe.seed)
        shots = held_out_shots(recipe.shots, recipe.evaluate.prompts, recipe.seed, trained)
        records = evaluation_prompts(run.character, recipe, shots, "judged", "after")
        requests: list[ImageRequest] = [
            record.request.model_copy(update={"prompt": prompt_of(recipe.generate, called, record.shot)})
            for record in records
        ]
        size = recipe.generate.batch_size
        batches = [requests[start : start + size] for start in range(0, len(requests), size)]
        return [made.image for made in ports.generator.generate(batches, lora)], records

    def _leak(self, run: Run, ports: RecipePorts, lora: LoraUse | None, target: Mapping[str, str]) -> float:
        """The identity of the same pictures where the prompt leaves the trigger out; lower is better."""
        images, _ = self._exam(run, ports, lora, "")
        wanted = [Trait(name, value) for name, value in target.items()]
        return mean_share(shares_right([wanted] * len(images), self._judge.read(images))) or 0.0

    def _majority(self, variant: str) -> dict[str, str]:
        """The commonest value of each trait in the accepted pictures of a variant, as the judge reads them."""
        if variant == "b" and not (self.folder / "b" / "curation.json").exists():
            self.run("b")
        files = sorted((self.folder / variant / "images").glob("*.png"))
        seen = self._judge.read([picture for file in files if (picture := load_picture(file)) is not None])
        counts = {trait: Counter(row[trait] for row in seen if trait in row) for trait in world().identity}
        return {trait: count.most_common(1)[0][0] for trait, count in counts.items() if count}

    def _figures(
        self,
        images: Sequence[Image.Image],
        records: Sequence[PictureRecord],
        majority: Mapping[str, str],
        seconds: float,
        dataset_seconds: float,
    ) -> dict[str, Any]:
        seen = self._judge.read(images)
        target = {**majority, **{trait.attribute: trait.value for trait in self.subject.described}}
        wanted = [Trait(name, value) for name, value in target.items()]
        asked = [self._judge.understand(record.shot.words()) for record in records]
        named = {trait.attribute for trait in self.subject.described}

        def measure(rows: Sequence[int]) -> dict[str, float]:
            part = [seen[row] for row in rows]
            right = shares_right([wanted] * len(part), part)
            obeyed = shares_right([asked[row] for row in rows], part, hidden_is_wrong=True)
            return {
                "identity": mean_share(right) or 0.0,
                "described": mean_share({k: v for k, v in right.items() if k in named}) or 0.0,
                "open": mean_share({k: v for k, v in right.items() if k not in named}) or 0.0,
                "consistency": agreement(part),
                "adherence": mean_share(obeyed) or 0.0,
            }

        seeds = sorted({record.request.key.split(".")[1] for record in records})
        by_seed = [
            measure([row for row, record in enumerate(records) if record.request.key.endswith(f".{seed}")])
            for seed in seeds
        ]
        whole = measure(range(len(records)))
        spread = {name: round(statistics.pstdev([each[name] for each in by_seed]), 4) for name in whole}
        return {
            **whole,
            "minutes": round(seconds / 60, 2),
            "spread": spread,
            "dataset_seconds": round(dataset_seconds, 1),
            "target": target,
        }


def agreement(seen: Sequence[Mapping[str, str]]) -> float:
    """Mean over the identity traits of the share of pairs of pictures that show the same value."""
    shares = []
    for trait in world().identity:
        counts = Counter(row[trait] for row in seen if trait in row)
        total = sum(counts.values())
        if total > 1:
            shares.append(sum(n * (n - 1) for n in counts.values()) / (total * (total - 1)))
    return round(statistics.mean(shares), 4)


class Clock:
    """Seconds spent inside a `with`."""

    def __enter__(self) -> Clock:
        self._started, self.seconds = time.perf_counter(), 0.0
        return self

    def __exit__(self, *error: object) -> None:
        self.seconds = time.perf_counter() - self._started


def quiet(event: ProgressEvent) -> None:
    """Nobody watches."""


def mean_of(rows: Sequence[Mapping[str, Any]], pick: Callable[[Mapping[str, Any]], float]) -> float:
    return round(statistics.mean(pick(row) for row in rows), 4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="draws the characters and fixes each run")
    parser.add_argument("--characters", type=int, default=8)
    parser.add_argument(
        "--first", type=int, default=0, help="begin with this one of them, for several processes"
    )
    parser.add_argument("--variants", default="".join(VARIANTS), help="which of abcdefg")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "lora-foundry-identity")
    parser.add_argument("--minutes", type=float, default=1e9, help="begin no further variant after so long")
    parser.add_argument("--set", action="append", default=[], dest="settings", metavar="SECTION.KEY=VALUE")
    parser.add_argument("--name", default="identity", help="of the file in benchmarks/results")
    parser.add_argument("--no-save", action="store_true", help="leave benchmarks/results as it is")
    options = parser.parse_args()
    rng, started = random.Random(options.seed), time.perf_counter()
    subjects = [draw_subject(rng, options.seed * 1000 + index) for index in range(options.characters)]
    done: dict[str, dict[str, dict[str, Any]]] = {}
    for subject in subjects[options.first :]:
        bench = Bench(subject, options.work / f"seed-{options.seed}", options.settings)
        for variant in options.variants:
            if time.perf_counter() - started > options.minutes * 60:
                break
            figures = done.setdefault(subject.character.name, {})[variant] = bench.run(variant)
            print(
                f"{subject.character.name} ({subject.character.description}) {variant}: "
                + ", ".join(f"{score} {figures[score]:.3f}" for score in SCORES),
                flush=True,
            )
    report(subjects, done, options)


def report(
    subjects: Sequence[Subject],
    done: Mapping[str, Mapping[str, Mapping[str, Any]]],
    options: argparse.Namespace,
) -> None:
    """The table over the characters that have every variant, and whether choosing was worth it."""
    whole = {name: rows for name, rows in done.items() if set(options.variants) <= rows.keys()}
    if not whole:
        print("no character has all variants yet; run the same command again to go on")
        return
    figures = {
        variant: {score: mean_of([rows[variant] for rows in whole.values()], lambda row, s=score: float(row[s]))
                  for score in SCORES}
        for variant in options.variants
    }  # fmt: skip
    lines = []
    for variant in options.variants:
        rows = [each[variant] for each in whole.values()]
        spreads = {score: mean_of(rows, lambda row, s=score: float(row["spread"][s])) for score in SCORES[:3]}
        cells = [f"{figures[variant][score]:.3f} ±{spreads[score]:.3f}" for score in SCORES[:3]]
        split = [mean_of(rows, lambda row, s=part: float(row[s])) for part in ("described", "open")]
        rest = [figures[variant][each] for each in ("leak", "minutes")]
        lines.append([f"({variant}) {VARIANTS[variant]}", *cells, *split, *rest])
    table(["variant", *SCORES[:3], "described", "open", "leak", "minutes"], lines)
    chosen = [rows[variant] for rows in whole.values() for variant in "efg" if variant in rows]
    better = sum(score(row) >= score(row["last"]) - 1e-9 for row in chosen)
    if chosen:
        print(
            f"the chosen checkpoint is at least the last one, as the judge sees it: {better} of {len(chosen)}"
        )
    finish(
        options.name,
        figures,
        {"seed": options.seed, "characters": len(whole), "settings": [*LEAN, *options.settings],
         "chosen_at_least_last": f"{better} of {len(chosen)}",
         "subjects": {s.character.name: s.character.description for s in subjects}, "runs": whole},
        not options.no_save,
    )  # fmt: skip


def score(row: Mapping[str, Any]) -> float:
    """Identity and adherence in one figure, their harmonic mean."""
    identity, adherence = float(row["identity"]), float(row["adherence"])
    return 2 * identity * adherence / max(identity + adherence, 1e-9)


if __name__ == "__main__":
    main()
