"""What a LoRA is examined on: unseen shots with a face, prompts without a trait, seeds of their own."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_foundry.domain.character import Character
from lora_foundry.domain.held_out import evaluation_prompts, evaluation_seed, held_out_shots, with_faces
from lora_foundry.domain.picture_plan import picture_seed
from lora_foundry.domain.recipe import Recipe
from lora_foundry.domain.shots import Vocabulary, plan_shots
from lora_foundry.recipe_files import load_recipe, recipe_names


@pytest.fixture(scope="module", params=sorted(recipe_names()))
def recipe(request: pytest.FixtureRequest) -> Recipe:
    return load_recipe(request.param)


@pytest.fixture
def zoe() -> Character:
    return Character(name="Zoë van Dijk", description="1girl, brown hair, blue eyes, red dress, crown")


@pytest.mark.parametrize("seed", range(8))
def test_shots_are_unseen_different_and_show_a_face(recipe: Recipe, seed: int) -> None:
    trained = plan_shots(recipe.shots, 40, seed)
    shots = held_out_shots(recipe.shots, 16, seed, trained)
    assert len(set(shots)) == 16
    assert not set(shots) & set(trained)
    forbidden = recipe.shots.forbidden()
    for shot in shots:
        assert shot.expression
        assert not set(shot) & set(recipe.shots.faceless)
        assert not any(frozenset((one, other)) in forbidden for one in shot for other in shot)
    assert shots == held_out_shots(recipe.shots, 16, seed, trained)
    assert shots != held_out_shots(recipe.shots, 16, seed + 1, trained)


def test_every_expression_is_examined_about_as_often(recipe: Recipe) -> None:
    count = 3 * len(recipe.shots.expressions)
    used = Counter(shot.expression for shot in held_out_shots(recipe.shots, count, 1, ()))
    assert set(used) == set(recipe.shots.expressions)
    assert max(used.values()) - min(used.values()) <= 1


def small(**changes: tuple[object, ...]) -> Vocabulary:
    words = {"poses": ("standing",), "expressions": ("calm", "happy"), "angles": ("front view", "back view"),
             "lightings": ("day",), "backgrounds": ("street",)}  # fmt: skip
    return Vocabulary.model_validate({**words, "faceless": ("back view",), **changes})


@settings(max_examples=30, deadline=None)
@given(count=st.integers(1, 9), seed=st.integers(0, 99))
def test_a_small_vocabulary_gives_as_many_unseen_shots_as_it_has(count: int, seed: int) -> None:
    trained = [shot for shot in plan_shots(small(), 1, seed) if shot.expression]
    shots = held_out_shots(small(), count, seed, trained)
    assert len(shots) == count
    assert len(set(shots) - set(trained)) == min(count, 2 - len(trained))


def test_a_vocabulary_of_backs_only_is_used_as_it_is() -> None:
    backs = small(angles=("back view",))
    assert with_faces(backs) == backs
    assert held_out_shots(backs, 2, 1, ())[0].angle == "back view"


def test_exclusions_that_name_a_faceless_word_are_dropped_with_it() -> None:
    tight = small(impossible=(("back view", ("happy",)), ("street", ("back view", "day"))))
    assert with_faces(tight).forbidden() == {frozenset(("street", "day"))}


def test_prompts_say_the_trigger_and_no_trait(zoe: Character) -> None:
    recipe = load_recipe("mini", ["evaluate.prompts=6", "evaluate.seeds=3"])
    shots = held_out_shots(recipe.shots, 6, 1, ())
    before, after, leak = (
        evaluation_prompts(zoe, recipe, shots, side, side) for side in ("before", "after", "without_trigger")
    )
    assert len(before) == 18
    assert [record.request for record in before] == [record.request for record in after]
    for record in before:
        words = ["zoë van dijk", *record.shot.words(), *recipe.generate.suffix.split(", ")]
        assert record.request.prompt == ", ".join(words)
    assert [record.request.seed for record in leak] == [record.request.seed for record in before[::3]]
    assert all("zoë" not in record.request.prompt for record in leak)


def test_seeds_are_their_own(zoe: Character) -> None:
    recipe = load_recipe("mini")
    shots = held_out_shots(recipe.shots, 16, recipe.seed, ())
    seeds = {record.request.seed for record in evaluation_prompts(zoe, recipe, shots, "model", "after")}
    assert len(seeds) == 16 * recipe.evaluate.seeds
    assert not seeds & {
        picture_seed(recipe.seed, index, attempt) for index in range(100) for attempt in range(4)
    }
    assert evaluation_seed(1, 2) != evaluation_seed(2, 1)
