"""Fewer pictures where a choice is clear, all of them where it is not, and never another rule than without the race."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_foundry.domain.evaluation import Candidate
from lora_foundry.domain.lora import LoraUse
from lora_foundry.stages.evaluate.choosing import Choice, clearly_best_of
from lora_foundry.stages.evaluate.race import Raced, completions, halves, race, shares_won

Scores = dict[int, Sequence[float]]
"""Of each step, what every one of its pictures would score; the last step is the last checkpoint."""


class Contest:
    """Draws by noting it, and rates by the mean of the scores that stand there."""

    def __init__(self, scores: Scores) -> None:
        self.scores = scores
        self.options = [Choice(step, "", LoraUse(path=Path("lora"), strength=1.0)) for step in scores]
        self.drawn = dict.fromkeys(scores, 0)

    def run(self, looks: Sequence[int] = ()) -> Raced:
        return race(
            self.options, looks or halves(len(next(iter(self.scores.values())))), self.draw, self.rate
        )

    def draw(self, option: Choice, start: int, stop: int) -> None:
        assert start == self.drawn[option.step]
        self.drawn[option.step] = stop

    def rate(self, option: Choice, places: Sequence[int]) -> Candidate:
        assert max(places) < self.drawn[option.step], "a picture counts that was not drawn"
        mean = sum(self.scores[option.step][place] for place in places) / len(places)
        return Candidate(
            step=option.step, strength=1.0, sha256="", identity=mean, score=round(min(max(mean, 0.0), 1.0), 4)
        )


def test_where_the_last_is_as_good_as_any_half_of_the_pictures_are_drawn() -> None:
    contest = Contest({1: [0.5] * 6, 2: [0.7] * 6, 3: [0.8] * 6})
    assert contest.run().best.step == 3
    assert contest.drawn == {1: 3, 2: 3, 3: 3}


def test_where_an_earlier_one_is_clearly_better_half_of_the_pictures_are_drawn() -> None:
    contest = Contest({1: [0.9] * 6, 2: [0.7] * 6, 3: [0.6] * 6})
    assert contest.run().best.step == 1
    assert sum(contest.drawn.values()) == 9


def test_only_what_may_still_be_chosen_is_drawn_to_the_end() -> None:
    contest = Contest({1: [0.1] * 6, 2: [0.9, 0.9, 0.1, 0.9, 0.9, 0.9], 3: [0.6] * 6})
    found = contest.run()
    assert found.best.step == 2
    assert contest.drawn == {1: 3, 2: 6, 3: 6}
    assert [each.pictures for each in found.candidates] == [3, 6, 6]


def test_figures_of_one_that_was_dropped_are_those_of_the_shots_that_all_have() -> None:
    """Its three shots are hard: the last one, too, is worse on them than on all six."""
    contest = Contest({1: [0.1] * 6, 2: [0.9, 0.2, 0.7, 0.9, 0.9, 0.9], 3: [0.4, 0.5, 0.6, 0.9, 0.9, 0.9]})
    found = contest.run()
    dropped = found.candidates[0]
    assert dropped.pictures == 3
    assert dropped.score == pytest.approx(0.1 + 0.7 - 0.5, abs=1e-3)
    assert dropped.identity == pytest.approx(dropped.score, abs=1e-3)


def test_one_that_is_broken_stays_at_nothing() -> None:
    contest = Contest({1: [0.0] * 6, 2: [0.9, 0.2, 0.7, 0.9, 0.9, 0.9], 3: [0.4, 0.5, 0.6, 0.9, 0.9, 0.9]})
    assert contest.run().candidates[0].score == 0


@pytest.mark.parametrize("total", [1, 2, 3])
def test_too_few_pictures_are_drawn_at_once(total: int) -> None:
    assert halves(total) == (total,)


@pytest.mark.parametrize(("total", "looks"), [(4, (3, 4)), (6, (3, 6)), (7, (4, 7)), (100, (50, 100))])
def test_more_are_looked_at_once_in_between(total: int, looks: tuple[int, ...]) -> None:
    assert halves(total) == looks


shares = st.integers(0, 20).map(lambda twentieths: twentieths / 20)


@given(st.lists(st.lists(shares, min_size=6, max_size=6), min_size=2, max_size=5))
@settings(max_examples=60, deadline=None)
def test_whatever_is_drawn_to_the_end_is_chosen_from_by_the_usual_rule(table: list[list[float]]) -> None:
    contest = Contest(dict(enumerate(table)))
    found = contest.run()
    whole = [option for option in contest.options if contest.drawn[option.step] == 6]
    if whole:
        assert found.best == clearly_best_of([(option, contest.rate(option, range(6))) for option in whole])
    assert set(contest.drawn.values()) <= {3, 6}
    assert contest.drawn[len(table) - 1] == max(contest.drawn.values())


@given(st.lists(st.lists(shares, min_size=6, max_size=6), min_size=2, max_size=4))
@settings(max_examples=30, deadline=None)
def test_what_was_dropped_had_little_chance(table: list[list[float]]) -> None:
    contest = Contest(dict(enumerate(table)))
    contest.run()
    won = shares_won(contest.options, 3, 6, contest.rate)
    assert sum(won.values()) == pytest.approx(1)
    if max(won.values()) <= 0.9:
        for option in contest.options[:-1]:
            assert (contest.drawn[option.step] == 6) == (won[option.name] >= 0.1)


def test_the_missing_pictures_are_like_those_that_are_there_and_every_mixture_of_them_is_as_likely() -> None:
    """Polya's urn: of two pictures completed to four, {0: 3, 1: 1}, {0: 2, 1: 2} and {0: 1, 1: 3} come equally often."""
    found = completions(2, 4)
    assert sum(found.values()) == 100
    assert set(found) == {(0, 0, 0, 1), (0, 0, 1, 1), (0, 1, 1, 1)}
    assert all(15 <= times <= 52 for times in found.values())
    assert completions(6, 6) == {(0, 1, 2, 3, 4, 5): 100}
    assert completions(2, 4) == found
