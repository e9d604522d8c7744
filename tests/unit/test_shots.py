"""The shot plan: even, possible, reproducible."""

from __future__ import annotations

import sys
from collections import Counter
from hashlib import sha256
from itertools import combinations
from types import FrameType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_foundry.domain.shots import AXES, Shot, Vocabulary, plan_shots
from lora_foundry.errors import InputError
from lora_foundry.recipe_files import load_recipe

RECIPES = ("mini", "sd15")


def impossible_pairs(vocabulary: Vocabulary, shot: Shot) -> list[frozenset[str]]:
    pairs = [frozenset(pair) for pair in combinations(shot.words(), 2)]
    return [pair for pair in pairs if pair in vocabulary.forbidden()]


@pytest.mark.parametrize("name", RECIPES)
@given(count=st.integers(1, 60), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_plan_is_even_possible_and_reproducible(name: str, count: int, seed: int) -> None:
    vocabulary = load_recipe(name).shots
    plan = plan_shots(vocabulary, count, seed)
    assert len(plan) == count
    assert plan == plan_shots(vocabulary, count, seed)
    for shot in plan:
        assert not impossible_pairs(vocabulary, shot)
        assert bool(shot.expression) != (
            shot.angle in vocabulary.faceless or shot.pose in vocabulary.faceless
        )
    if count >= 10:  # with a handful of pictures an exclusion may force a value twice
        for axis, position in zip(AXES, range(5), strict=True):
            used = Counter(shot[position] for shot in plan if shot[position])
            counts = [used[word] for word in vocabulary.axis(axis)]
            assert max(counts) - min(counts) <= 1, (axis, used)


def test_other_seeds_give_other_plans() -> None:
    vocabulary = load_recipe("sd15").shots
    assert len({plan_shots(vocabulary, 40, seed) for seed in range(20)}) == 20


def test_original_vocabulary_is_complete() -> None:
    vocabulary = load_recipe("sd15").shots
    sizes = [len(vocabulary.axis(axis)) for axis in AXES]
    assert sizes == [17, 12, 10, 8, 9]
    plan = plan_shots(vocabulary, 40, 42)
    assert {shot.pose for shot in plan} == set(vocabulary.poses)
    assert not [shot for shot in plan if shot.angle == "back view" and shot.expression]


def small(**changes: object) -> Vocabulary:
    values: dict[str, object] = {
        "poses": ["standing", "sitting"],
        "expressions": ["smile"],
        "angles": ["front", "back"],
        "lightings": ["day"],
        "backgrounds": ["white"],
    }
    return Vocabulary.model_validate(values | changes)


def test_an_impossible_vocabulary_is_refused_in_words() -> None:
    nothing = small(impossible=[["day", ["white"]]])
    with pytest.raises(InputError, match="forbid every shot"):
        plan_shots(nothing, 4, 0)


def test_an_exclusion_of_an_unknown_word_is_refused() -> None:
    with pytest.raises(InputError, match="'stading'"):
        small(impossible=[["stading", ["white"]]])


def test_no_images_cannot_be_planned() -> None:
    with pytest.raises(InputError, match="1 or more"):
        plan_shots(small(), 0, 0)


@pytest.mark.parametrize("words", [[], ["a", "a"], ["a, b"], [" "]])
def test_useless_word_lists_are_refused(words: list[str]) -> None:
    with pytest.raises(InputError, match="without commas or repeats"):
        small(poses=words)


@pytest.mark.parametrize(
    ("name", "count", "digest"),
    [("mini", 40, "cfd0a2307694"), ("mini", 160, "955b08a151c6"), ("sd15", 160, "0cde31337bcd")],
)
def test_the_plan_of_a_seed_is_what_it_always_was(name: str, count: int, digest: str) -> None:
    """A set that is continued by a later version is asked for the same shots."""
    plan = plan_shots(load_recipe(name).shots, count, 3)
    assert sha256(repr(plan).encode()).hexdigest()[:12] == digest


@pytest.mark.slow
def test_few_of_the_swaps_of_a_large_plan_are_tried() -> None:
    """Trying each swap with each row made the plan of 640 pictures cost ninety times that of 40."""
    tried = 0

    def count(frame: FrameType, event: str, argument: object) -> None:
        nonlocal tried
        tried += event == "call" and frame.f_code.co_name == "gain"

    vocabulary = load_recipe("mini").shots
    sys.setprofile(count)
    try:
        plan_shots(vocabulary, 640, 3)
    finally:
        sys.setprofile(None)
    assert 0 < tried < 150 * 640
