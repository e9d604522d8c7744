"""How few pictures settle a choice. All options draw the same shots from the same seeds, a part of them at a time; what is
most unlikely to be chosen once all are there is dropped, and where one is almost certain to be, the rest is not drawn."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

from lora_foundry.domain.evaluation import Candidate
from lora_foundry.stages.evaluate.choosing import Choice, clearly_best_of

UNLIKELY = 0.1  # an option that would be chosen less often than this is dropped
_FEWEST = 3  # pictures an option: what fewer have in common may be chance
_COMPLETIONS = 100

Draw = Callable[[Choice, int, int], None]
"""Draws and observes an option's pictures from one place to another."""
Rate = Callable[[Choice, Sequence[int]], Candidate]
"""An option's score on the pictures at these places, of which one may stand there several times."""


class Raced(NamedTuple):
    """The option that was chosen, and how each of them did."""

    best: Choice
    candidates: tuple[Candidate, ...]


def halves(total: int) -> tuple[int, ...]:
    """Where a choice on `total` pictures an option is looked at: after a half of them, if that is enough to go by."""
    half = max(_FEWEST, (total + 1) // 2)
    return (half, total) if half < total else (total,)


def race(options: Sequence[Choice], looks: Sequence[int], draw: Draw, rate: Rate) -> Raced:
    """Chooses among the options as `clearly_best_of` does, the last of which it falls back on. looks: how many pictures
    of an option there are when it is looked at, rising; all of them at the last."""
    last, alive, seen = options[-1], list(options), 0
    pictures = dict.fromkeys((option.name for option in options), 0)
    for stop in looks:
        for option in alive:
            draw(option, seen, stop)
            pictures[option.name] = stop
        seen = stop
        won = shares_won(alive, seen, looks[-1], rate)
        alive = [option for option in alive if option == last or won[option.name] >= UNLIKELY]
        if max(won.values()) > 1 - UNLIKELY:
            break
    shown = [
        _comparable(rate(option, range(pictures[option.name])), pictures[option.name], seen, last, rate)
        for option in options
    ]
    rated = [(option, rate(option, range(seen))) for option in alive]
    return Raced(clearly_best_of(rated), tuple(shown))


def shares_won(options: Sequence[Choice], seen: int, total: int, rate: Rate) -> dict[str, float]:
    """How probable it is, by the pictures seen so far, that each option is chosen once all `total` of them are there: the
    predictive probability by which trials are ended early (Spiegelhalter, Freedman and Blackburn 1986, Monitoring
    clinical trials: conditional or predictive power?), with the missing pictures drawn as in `completions`."""
    won = dict.fromkeys((option.name for option in options), 0.0)
    for places, times in completions(seen, total).items():
        best = clearly_best_of([(option, rate(option, places)) for option in options])
        won[best.name] += times / _COMPLETIONS
    return won


def completions(seen: int, total: int) -> Counter[tuple[int, ...]]:
    """What `total` pictures may be of which `seen` are known, and how often: each further one is like one of those there,
    and counts as one of them from then on. This is Polya's urn (Lo 1988, A Bayesian bootstrap for a finite population,
    Annals of Statistics 16). All options get the same places, so that they are compared pair by pair."""
    chance, found = random.Random(total), Counter[tuple[int, ...]]()
    for _ in range(_COMPLETIONS):
        places = list(range(seen))
        while len(places) < total:
            places.append(chance.choice(places))
        found[tuple(sorted(places))] += 1
    return found


def _comparable(candidate: Candidate, pictures: int, seen: int, last: Choice, rate: Rate) -> Candidate:
    """With the number of its pictures; of one that was dropped early, what these differ from the last option's on the
    same shots is added to the last option's figures on all of them, since some shots are harder than others."""
    if pictures == seen:
        return candidate.model_copy(update={"pictures": pictures})
    now, then = rate(last, range(seen)), rate(last, range(pictures))
    moved = {
        name: _moved(getattr(candidate, name), getattr(now, name), getattr(then, name))
        for name in ("identity", "adherence", "score")
        if candidate.score  # 0 says that it is broken
    }
    return candidate.model_copy(update={"pictures": pictures, **moved})


def _moved(value: float | None, now: float | None, then: float | None) -> float | None:
    if value is None or now is None or then is None:
        return value
    return round(min(max(value + now - then, 0.0), 1.0), 4)
