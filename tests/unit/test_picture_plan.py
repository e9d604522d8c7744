"""The plan fixes every picture before the first is made, and tells its own pictures from others."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_foundry.domain.character import Character
from lora_foundry.domain.picture_plan import PicturePlan, picture_seed, plan_pictures
from lora_foundry.recipe_files import load_recipe


def plan(*changes: str, recipe: str = "mini", description: str = "1girl, brown hair", name: str = "Elara",
         model: str = "m") -> PicturePlan:  # fmt: skip
    character = Character(name=name, description=description)
    return plan_pictures(character, load_recipe(recipe, changes), model)


def test_the_prompt_has_the_original_systems_form() -> None:
    made = plan(recipe="sd15", description="a tall knight, armor,")
    for index, shot in enumerate(made.shots):
        words = ", ".join(shot.words())
        expected = f"a tall knight, armor, {words}, high quality, detailed, masterpiece, best quality"
        assert made.record(index).request.prompt == expected
        assert "elara" not in made.record(index).request.prompt.lower()
    request = made.record(0).request
    assert (request.width, request.height, request.steps, request.cfg) == (768, 768, 28, 7.5)
    assert (request.sampler, request.scheduler) == ("dpmpp_2m", "karras")
    assert "bad hands" in request.negative


def test_a_prefix_comes_first_and_adds_no_comma_of_its_own() -> None:
    prompt = plan('generate.prefix="anime style, "').record(0).request.prompt
    assert prompt.startswith("anime style, 1girl, brown hair, ")


def test_seeds_are_distinct_over_shots_and_attempts() -> None:
    seeds = [picture_seed(42, index, attempt) for index in range(1000) for attempt in range(10)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**53 for seed in seeds)
    assert picture_seed(1, 0, 0) != picture_seed(2, 0, 0)


def test_seeds_never_change_between_versions() -> None:
    """People keep recipes to get the same pictures again."""
    assert picture_seed(42, 0, 0) == 852964719843216


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**31), st.integers(0, 39), st.integers(0, 3))
def test_a_record_fits_its_own_place_only(seed: int, index: int, attempt: int) -> None:
    made = plan(f"seed={seed}")
    record = made.record(index, attempt)
    assert made.fits(record, index)
    assert made.fits(record.model_copy(update={"sha256": "ab"}), index)
    assert not made.fits(record, (index + 1) % 40)
    assert not made.fits(None, index)
    assert not plan(f"seed={seed + 1}").fits(record, index)


@pytest.mark.parametrize(
    "setting",
    ["generate.steps=3", "generate.cfg=2", "generate.guidance_rescale=0.1", "generate.width=72", "seed=1",
     "generate.sampler=euler", "generate.scheduler=karras", "generate.negative=blurry", "generate.suffix=x",
     "generate.prefix=y", "generate.images=41", 'shots.faceless=["running"]'],
)  # fmt: skip
def test_what_changes_a_picture_changes_the_plan(setting: str) -> None:
    assert plan(setting).fingerprint() != plan().fingerprint()
    assert not all(plan(setting).fits(plan().record(index), index) for index in range(40))


@pytest.mark.parametrize(
    "setting",
    ["train.steps=7", "curate.min_contrast=9", "generate.batch_size=1", "evaluate.seeds=1",
     "caption.prune_identity=false"],
)  # fmt: skip
def test_what_changes_no_picture_leaves_the_plan(setting: str) -> None:
    assert plan(setting).fingerprint() == plan().fingerprint()


def test_another_description_or_model_is_another_plan() -> None:
    assert plan(description="1boy").fingerprint() != plan().fingerprint()
    assert plan(model="other").fingerprint() != plan().fingerprint()
