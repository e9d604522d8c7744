"""One picture of a character, and the LoRA that comes of it: random characters of the miniature world, each shown in one
picture that the renderer drew, without a word of description. Judged against the characters' true traits by the attribute
reader; what looks at pictures in the pipeline is another reader, trained apart (`mini_world/second_reader`).

    PYTHONPATH=. python benchmarks/reference.py --work DIR [--first 0 --characters 8] [--variants idcb]

Partial results are kept in `--work`, so a stopped run goes on where it was."""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import finish, table
from identity import CONSONANTS, LEAN, PROMPTS, SEEDS, VOWELS, SecondEye, quiet
from PIL import Image

from lora_foundry.backends.mini_instruments import MiniTagger
from lora_foundry.composition import RecipePorts
from lora_foundry.domain.character import Character
from lora_foundry.domain.evaluation import Evaluation
from lora_foundry.domain.held_out import evaluation_prompts, held_out_shots
from lora_foundry.domain.lora import LoraUse
from lora_foundry.domain.run import Run
from lora_foundry.domain.shots import plan_shots
from lora_foundry.families._shared.inspect import find_base
from lora_foundry.files.images import load_picture
from lora_foundry.files.paths import RunPaths
from lora_foundry.files.storage import require_model
from lora_foundry.pipeline import generate
from lora_foundry.ports import Trait
from lora_foundry.recipe_files import load_recipe
from lora_foundry.settings import Settings
from lora_foundry.stages.caption import step as caption
from lora_foundry.stages.curate import step as curate
from lora_foundry.stages.evaluate import step as evaluate
from lora_foundry.stages.evaluate.scoring import mean_share, shares_right
from lora_foundry.stages.train import step as train
from mini_world.render import render
from mini_world.scene import Scene, sample_character
from mini_world.vocabulary import TRAITS, tag

ALONE = ("generate.rounds=1", "generate.complete_description=false")
VARIANTS = {
    "i": ("image-to-image", ("generate.reference_method=img2img", "generate.reference_strength=0.4", *ALONE)),
    "d": ("the reference told in words alone", ("generate.reference_strength=0",)),
    "c": ("the adapter alone", ALONE),
    "b": ("both: the recipe's defaults", ()),
}
SCORES = ("pictures", "identity", "leak", "adherence", "minutes")


class Bench:
    """One character's variants, in one folder."""

    def __init__(self, number: int, work: Path, extra: tuple[str, ...]) -> None:
        rng = np.random.default_rng([9090, number])
        self.seed, self.extra = number, extra
        self.name = "".join(
            rng.choice(list(CONSONANTS)) + rng.choice(list(VOWELS)) for _ in range(3)
        ).capitalize()
        self.looks = sample_character(rng)
        self.traits = [Trait(name, tag(name, getattr(self.looks, name))) for name in TRAITS]
        self.folder = work / self.name.lower()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.settings = Settings(home=work / "home")
        self.judge = MiniTagger()
        self.picture = self.folder / "picture.png"
        shot = (
            "standing confidently",
            "neutral expression",
            "front view",
            "full body shot",
            "natural lighting",
        )
        Image.fromarray(render(Scene(self.looks, *shot, "simple background"), number)).save(self.picture)

    def run(self, variant: str) -> dict[str, Any]:
        """The variant's figures, from its file where it was run before."""
        path = self.folder / f"{variant}.json"
        if not path.exists():
            figures = self._make(variant)
            aside = path.with_suffix(".part")
            aside.write_text(json.dumps(figures, indent=1))
            aside.rename(path)
        return dict(json.loads(path.read_text()))

    def _make(self, variant: str) -> dict[str, Any]:
        recipe = load_recipe("mini", [f"seed={self.seed}", *LEAN, *VARIANTS[variant][1], *self.extra])
        run = Run(
            character=Character(name=self.name, reference_image=self.picture),
            recipe=recipe,
            dataset_dir=self.folder / variant,
            lora_dir=self.folder / "loras",
            output_name=self.name.lower(),
        )
        ports = RecipePorts(recipe, find_base("mini"), self.settings)
        ports.captioners = (SecondEye(),) if recipe.generate.complete_description else ()
        paths, started = RunPaths(run.dataset_dir, run.character.slug), time.perf_counter()
        generate(run, ports, quiet)
        for stage in (curate, caption, train, evaluate):
            stage.run(run, ports, quiet)
        minutes = (time.perf_counter() - started) / 60
        scores = require_model(paths.evaluation_result, Evaluation, "evaluate")
        use = LoraUse(path=paths.chosen_lora, strength=scores.strength)
        after, adherence = self._exam(run, ports, use, "after")
        files = sorted(paths.images.glob("*.png"))
        drawn = [image for file in files if "_reference" not in file.name and (image := load_picture(file))]
        seen = self.judge.read(drawn)
        return {
            "pictures": mean_share(shares_right([self.traits] * len(seen), seen)),
            "identity": mean_share(after),
            "leak": mean_share(self._exam(run, ports, use, "without_trigger")[0]),
            "adherence": adherence,
            "minutes": round(minutes, 2),
            "by_trait": after,
            "looks": {trait.attribute: trait.value for trait in self.traits},
        }

    def _exam(self, run: Run, ports: RecipePorts, use: LoraUse, side: Any) -> tuple[dict[str, float], float]:
        """Shares of right traits, and adherence, on held-out shots and seeds, without the reference."""
        measured = run.recipe.evaluate.model_copy(update={"prompts": PROMPTS, "seeds": SEEDS})
        recipe = run.recipe.model_copy(update={"evaluate": measured})
        trained = plan_shots(recipe.shots, recipe.generate.images, recipe.seed)
        shots = held_out_shots(recipe.shots, PROMPTS, recipe.seed, trained)
        records = evaluation_prompts(run.character, recipe, shots, "judged", side)
        size = recipe.generate.batch_size
        requests = [record.request for record in records]
        batches = [requests[start : start + size] for start in range(0, len(requests), size)]
        seen = self.judge.read([made.image for made in ports.generator.generate(batches, use)])
        asked = [self.judge.understand(record.shot.words()) for record in records]
        obeyed = mean_share(shares_right(asked, seen, hidden_is_wrong=True))
        return shares_right([self.traits] * len(seen), seen), obeyed or 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--characters", type=int, default=8)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--variants", default="".join(VARIANTS))
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "lora-foundry-reference")
    parser.add_argument("--set", action="append", default=[], dest="settings", metavar="SECTION.KEY=VALUE")
    parser.add_argument("--no-save", action="store_true", help="leave benchmarks/results as it is")
    options = parser.parse_args()
    done: dict[str, dict[str, Any]] = {variant: {} for variant in options.variants}
    for number in range(options.first, options.characters):
        bench = Bench(number, options.work, tuple(options.settings))
        for variant in options.variants:
            figures = done[variant][bench.name] = bench.run(variant)
            print(
                f"{bench.name} {variant}:",
                ", ".join(f"{score} {figures[score]:.3f}" for score in SCORES),
                flush=True,
            )
    means = {
        variant: {score: round(statistics.mean(row[score] for row in rows.values()), 3) for score in SCORES}
        for variant, rows in done.items()
    }
    table(["variant", *SCORES], [[VARIANTS[each][0], *row.values()] for each, row in means.items()])
    about = {
        "characters": options.characters - options.first,
        "settings": [*LEAN, *options.settings],
        "runs": done,
    }
    finish("reference", means, about, not options.no_save)


if __name__ == "__main__":
    main()
