"""How well the adapter restages a picture: people it has never seen, each in one drawn picture and then in eight shots,
without a word of the person. Beside it stands image-to-image, which is what a model without an adapter has.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from lora_foundry.backends.diffusers import DiffusersGenerator
from lora_foundry.backends.mini_instruments import MiniTagger
from lora_foundry.domain.dataset import ReferenceUse
from lora_foundry.domain.picture_plan import prompt_of, request_of
from lora_foundry.domain.shots import plan_shots
from lora_foundry.families._shared.inspect import find_base
from lora_foundry.mini.vision import ADAPTER
from lora_foundry.ports import Trait
from lora_foundry.recipe_files import load_recipe
from lora_foundry.stages.evaluate.scoring import mean_share, shares_right
from mini_world.export import hashes
from mini_world.measure import sheet
from mini_world.render import render
from mini_world.scene import Scene, sample_character
from mini_world.vocabulary import TRAITS, tag

SHOTS = 8
PORTRAIT = ("standing confidently", "neutral expression", "front view", "full body shot", "natural lighting")
METHODS = {
    "adapter": (),
    "image-to-image": ("generate.reference_method=img2img", "generate.reference_strength=0.4"),
}


def restaged(method: str, people: int, seed: int) -> tuple[dict, list[Image.Image]]:
    """The shares of right traits and of obeyed shots, and every person's picture with the eight drawn after it."""
    recipe = load_recipe("mini", METHODS[method])
    generator, reader = DiffusersGenerator(find_base("mini"), recipe.generate, "cpu"), MiniTagger()
    rng, shown = np.random.default_rng(seed), []
    wanted, asked, seen = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(people):
            person = sample_character(rng)
            picture = Image.fromarray(render(Scene(person, *PORTRAIT, "simple background"), number))
            path = Path(folder) / f"{number}.png"
            picture.save(path)
            shots = plan_shots(recipe.shots, SHOTS, seed + number)
            requests = [
                request_of(
                    recipe.generate,
                    f"{place}",
                    prompt_of(recipe.generate, "", shot),
                    1000 * number + place,
                )
                for place, shot in enumerate(shots)
            ]
            use = ReferenceUse(path=path, strength=recipe.generate.reference_strength)
            drawn = [made.image for made in generator.generate([requests], reference=use)]
            shown += [picture, *drawn]
            seen += reader.read(drawn)
            wanted += [[Trait(name, tag(name, getattr(person, name))) for name in TRAITS]] * SHOTS
            asked += [reader.understand(shot.words()) for shot in shots]
    traits = shares_right(wanted, seen)
    adherence = mean_share(shares_right(asked, seen, hidden_is_wrong=True))
    return {"identity": mean_share(traits), "adherence": adherence, "by_trait": traits}, shown


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure how well the adapter restages a picture.")
    parser.add_argument("--people", type=int, default=8)
    parser.add_argument("--seed", type=int, default=4242)
    parser.add_argument("--out", type=Path, required=True, help="the table; a contact sheet is put beside it")
    options = parser.parse_args()
    table = {}
    for method in METHODS:
        table[method], shown = restaged(method, options.people, options.seed)
        print(method, json.dumps(table[method]), flush=True)
        if method == "adapter":
            sheet(shown, 1 + SHOTS).save(options.out.with_suffix(".png"))
    about = {"people": options.people, "shots": SHOTS, "seed": options.seed, "sha256": hashes(ADAPTER.parent)}
    options.out.write_text(json.dumps({**about, **table}, indent=1) + "\n")


if __name__ == "__main__":
    main()
