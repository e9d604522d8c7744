"""A person's word against the measurement's: the checkpoint that a recipe names is taken, if it is there."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_foundry.domain.lora import LoraUse
from lora_foundry.domain.sections import EvaluateSection
from lora_foundry.errors import InputError
from lora_foundry.stages.evaluate.choosing import Choice, demanded

OPTIONS = [
    Choice(step, "", LoraUse(path=Path("lora"), strength=strength))
    for step in (4, 8)
    for strength in (0.8, 1.0)
]


def test_nothing_is_demanded_where_the_recipe_names_no_step() -> None:
    assert demanded(OPTIONS, EvaluateSection(prompts=1, seeds=1)) is None


def test_the_checkpoint_that_the_recipe_names_is_taken_at_the_recipes_strength() -> None:
    assert demanded(OPTIONS, EvaluateSection(step=8, strength=0.8)) == OPTIONS[2]


@pytest.mark.parametrize("asked", [{"step": 5}, {"step": 4, "strength": 0.9}])
def test_one_that_is_not_there_is_refused_with_those_that_are(asked: dict[str, float]) -> None:
    with pytest.raises(InputError, match="there are steps 4, 8"):
        demanded(OPTIONS, EvaluateSection(**asked))
