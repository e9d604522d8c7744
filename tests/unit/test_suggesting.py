"""Which recipe somebody is offered first, by what is on the machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_foundry.recipe_files import load_recipe
from lora_foundry.settings import Settings
from lora_foundry.web.bases import BaseView
from lora_foundry.web.setups import NeedView, Readiness
from lora_foundry.web.suggesting import Candidate, suggest

BUNDLED = BaseView(name="mini", family="mini", bytes=0, folder="bundled", here=True)


def candidate(name: str, *missing: tuple[str, str]) -> Candidate:
    """A recipe that lacks these: what and licence."""
    recipe = load_recipe(name)
    needs = [NeedView(what=what, name=what, found=None, fetchable=True, source="hf:x", licence=licence,
                      bytes=None, advice="") for what, licence in missing]  # fmt: skip
    family = {"sdxl": "sdxl", "anima": "anima", "z-image": "z_image"}.get(name, "")
    return Candidate(
        recipe, Readiness(recipe=name, ready=not needs, fetchable=True, family=family, needs=needs)
    )


ALL = (
    candidate("mini"),
    candidate("anima", ("base model", "Non-Commercial")),
    candidate("sdxl", ("base model", "Fair AI"), ("tagger wd", "Apache-2.0")),
    candidate("z-image", ("base model", "Apache-2.0"), ("base model for training", "Apache-2.0")),
)
PONY = BaseView(name="pony.safetensors", family="sdxl", bytes=1, folder="models", here=True)


@pytest.mark.parametrize(
    ("candidates", "bases", "gpu", "recipe", "base"),
    [
        (ALL, [BUNDLED], False, "mini", ""),
        (ALL, [BUNDLED], True, "z-image", ""),
        (ALL, [BUNDLED, PONY], False, "sdxl", "pony.safetensors"),
        ((*ALL[:2], candidate("sdxl", ("tagger wd", "Apache-2.0")), ALL[3]), [BUNDLED], True, "sdxl", ""),
        (ALL[:1], [BUNDLED, PONY], True, "mini", ""),
    ],
)
def test_the_machine_decides(
    candidates: tuple[Candidate, ...],
    bases: list[BaseView],
    gpu: bool,
    recipe: str,
    base: str,
    tmp_path: Path,
) -> None:
    found = suggest(Settings(home=tmp_path), candidates, bases, gpu)
    assert (found.recipe, found.base) == (recipe, base)
    assert found.why.endswith(".")


def test_a_recipe_that_the_settings_name_is_offered(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, recipe="anima")
    assert suggest(settings, ALL, [BUNDLED, PONY], True).recipe == "anima"
