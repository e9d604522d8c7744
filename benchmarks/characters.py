"""Does the LoRA draw the character when only its trigger word is said? Random characters of the miniature world, every
trait named in the description, none in the evaluation's prompts; judged by the attribute reader."""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from pathlib import Path

from common import finish, table

from lora_foundry import Character, Foundry
from lora_foundry.api import CreateResult
from lora_foundry.mini import world

SCORES = ("identity_before", "identity_after", "adherence_before", "adherence_after")
CONSONANTS, VOWELS = "bdfgklmnprstvz", "aeiou"


def draw_character(rng: random.Random) -> Character:
    """A made-up name and one value of every identity trait."""
    name = "".join(rng.choice(CONSONANTS) + rng.choice(VOWELS) for _ in range(3)).capitalize()
    traits = {trait: rng.choice(values) for trait, values in world().identity.items()}
    colour = traits.pop("outfit_color")
    traits["outfit"] = f"{colour.split()[0]} {traits['outfit']}"
    return Character(name=name, description=", ".join(traits.values()))


def per_attribute(result: CreateResult) -> dict[str, float]:
    """Share of right readings of each trait with the LoRA."""
    from lora_foundry.domain.evaluation import Evaluation
    from lora_foundry.files.paths import RunPaths
    from lora_foundry.files.storage import require_model

    path = RunPaths(result.dataset_dir, "").evaluation_result
    return require_model(path, Evaluation, "evaluate").after.identity_by_trait


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="draws the characters and fixes each run")
    parser.add_argument("--characters", type=int, default=5)
    parser.add_argument("--recipe", default="mini")
    parser.add_argument("--set", action="append", default=[], dest="settings", metavar="SECTION.KEY=VALUE")
    parser.add_argument("--home", type=Path, default=None, help="keep everything in this folder")
    parser.add_argument("--no-save", action="store_true", help="leave benchmarks/results as it is")
    options = parser.parse_args()
    rng = random.Random(options.seed)
    rows: list[list[object]] = []
    details: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as temporary:
        foundry = Foundry(options.home or temporary)
        for index in range(options.characters):
            character = draw_character(rng)
            started = time.perf_counter()
            result = foundry.create(
                character, options.recipe, settings=options.settings, seed=options.seed + index
            )
            seconds = round(time.perf_counter() - started, 1)
            scores = result.scores.model_dump()
            rows.append([character.name, *(scores[score] for score in SCORES), seconds])
            traits = per_attribute(result)
            details.append(
                {"character": character.description, **scores, "traits": traits, "seconds": seconds}
            )
            print(
                f"{character.name}: {character.description}: {scores['identity_after']:.3f} in {seconds} s",
                flush=True,
            )
    means = [sum(float(str(row[column])) for row in rows) / len(rows) for column in range(1, len(SCORES) + 2)]
    table(["character", *SCORES, "seconds"], [*rows, ["mean", *means]])
    figures = {name: round(value, 4) for name, value in zip([*SCORES, "seconds"], means, strict=True)}
    finish(
        "characters",
        figures,
        {"seed": options.seed, "settings": options.settings, "runs": details},
        not options.no_save,
    )


if __name__ == "__main__":
    main()
