"""The shot plan: which pose, expression, angle, lighting and background each picture of a set shows.

Independent random picks gave the system this one replaces a "back view" with a "gentle smile", and some poses
never. Here every value of a vocabulary is used as evenly as the count allows, impossible pairs never occur, and one
seed fixes the whole plan. The words belong to the recipe: each model has been taught its own.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from lora_foundry.errors import InputError

AXES = ("pose", "expression", "angle", "lighting", "background")
_REPAIR_ROUNDS = 200


class Shot(NamedTuple):
    """What one picture shows. `expression` is empty where the face is not seen."""

    pose: str
    expression: str
    angle: str
    lighting: str
    background: str

    def words(self) -> tuple[str, ...]:
        """The shot's words in prompt order, without the empty ones."""
        return tuple(word for word in self if word)


class Vocabulary(BaseModel):
    """The words that shots are drawn from, and which of them cannot stand together."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    poses: tuple[str, ...] = Field(description="Poses, each used as evenly as the number of images allows.")
    expressions: tuple[str, ...] = Field(description="Facial expressions.")
    angles: tuple[str, ...] = Field(description="Camera angles and framings.")
    lightings: tuple[str, ...] = Field(description="Lightings.")
    backgrounds: tuple[str, ...] = Field(description="Backgrounds.")
    faceless: tuple[str, ...] = Field(
        default=(),
        description="Poses or angles from which the face is not seen; such a shot has no expression.",
    )
    impossible: tuple[tuple[str, tuple[str, ...]], ...] = Field(
        default=(), description="Rows of a word and the words of other axes it never stands with."
    )

    @field_validator("poses", "expressions", "angles", "lightings", "backgrounds")
    @classmethod
    def _check_words(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if (
            not value
            or any(not word.strip() or "," in word for word in value)
            or len(set(value)) < len(value)
        ):
            raise InputError(
                "Each list of the recipe's [shots] needs one word or more, without commas or repeats."
            )
        return value

    @model_validator(mode="after")
    def _check_references(self) -> Vocabulary:
        known = set(self.poses + self.expressions + self.angles + self.lightings + self.backgrounds)
        named = set(self.faceless) | {word for row, others in self.impossible for word in (row, *others)}
        if unknown := sorted(named - known):
            raise InputError(f"The recipe's [shots] excludes {unknown[0]!r}, which is in none of its lists.")
        return self

    def axis(self, name: str) -> tuple[str, ...]:
        """The words of one axis of AXES."""
        words: tuple[str, ...] = getattr(self, name + "s")
        return words

    def forbidden(self) -> frozenset[frozenset[str]]:
        """Every impossible pair of words."""
        pairs = {frozenset((row, other)) for row, others in self.impossible for other in others}
        return frozenset(pairs)


def plan_shots(vocabulary: Vocabulary, count: int, seed: int) -> tuple[Shot, ...]:
    """`count` shots: on each axis the counts of any two values differ by at most one, where exclusions allow it.

    Each axis is filled evenly and shuffled; then values are swapped between shots until no impossible pair is left
    (min-conflicts repair, Minton et al. 1992). Only if swapping cannot succeed is a value replaced by the least used
    one that fits. The same arguments give the same plan on every machine. Raises InputError if no plan exists.
    """
    if count < 1:
        raise InputError(f"{count} images cannot be planned; ask for 1 or more.")
    rng = random.Random(f"shots-{seed}")
    forbidden = vocabulary.forbidden()
    columns = [_even_column(vocabulary.axis(axis), count, rng) for axis in AXES]
    rows = [list(row) for row in zip(*columns, strict=True)]
    _repair(rows, (0, 2, 3, 4), vocabulary, forbidden, rng)
    _place_expressions(rows, vocabulary, forbidden, rng)
    return tuple(Shot(*row) for row in rows)


def _even_column(words: Sequence[str], count: int, rng: random.Random) -> list[str]:
    """Each word floor(count / n) times, a random choice of them once more, shuffled."""
    extra = rng.sample(list(words), count % len(words))
    column = list(words) * (count // len(words)) + extra
    rng.shuffle(column)
    return column


def _conflicts(row: Sequence[str], forbidden: frozenset[frozenset[str]]) -> int:
    """How many impossible pairs stand in `row`."""
    return _count_pairs(tuple(row), forbidden)


@lru_cache(maxsize=1 << 16)  # a repair asks again and again for the few rows that a vocabulary can form
def _count_pairs(row: tuple[str, ...], forbidden: frozenset[frozenset[str]]) -> int:
    words = [word for word in row if word]
    return sum(frozenset((a, b)) in forbidden for i, a in enumerate(words) for b in words[i + 1 :])


def _repair(
    rows: list[list[str]],
    axes: Sequence[int],
    vocabulary: Vocabulary,
    forbidden: frozenset[frozenset[str]],
    rng: random.Random,
) -> None:
    """Swaps values of `axes` between rows until no row has an impossible pair; replaces values where that fails.

    Raises InputError where no value fits.
    """
    for _ in range(_REPAIR_ROUNDS):
        bad = [row for row in rows if _conflicts(row, forbidden)]
        if not bad:
            return
        if not _swap_best(rows, rng.choice(bad), axes, forbidden, rng):
            break
    for row in rows:
        for axis in axes:
            if _conflicts(row, forbidden):
                _replace(rows, row, axis, vocabulary, forbidden)
        if _conflicts(row, forbidden):
            raise InputError(
                f"The recipe's [shots] forbid every shot like {', '.join(filter(None, row))!r}; "
                "loosen 'impossible'."
            )


def _swap_best(
    rows: list[list[str]],
    row: list[str],
    axes: Sequence[int],
    forbidden: frozenset[frozenset[str]],
    rng: random.Random,
) -> bool:
    """Makes the swap of one value of `row` with another row that removes most conflicts, or at least adds none, which
    leads out of dead ends; False if every swap adds some."""
    swaps = [(axis, other) for axis in axes for other in rows if other[axis] != row[axis]]
    rng.shuffle(swaps)

    def gain(swap: tuple[int, list[str]]) -> int:
        axis, other = swap
        before = _conflicts(row, forbidden) + _conflicts(other, forbidden)
        row[axis], other[axis] = other[axis], row[axis]
        after = _conflicts(row, forbidden) + _conflicts(other, forbidden)
        row[axis], other[axis] = other[axis], row[axis]
        return before - after

    # The first of the best. Once a swap solves all that is wrong with `row`, only one with a row that has conflicts of its
    # own can solve more, and those are few.
    best, most, wrong = None, -1, _conflicts(row, forbidden)
    for swap in swaps:
        if (most < wrong or _conflicts(swap[1], forbidden)) and (gained := gain(swap)) > most:
            best, most = swap, gained
    if best is None:
        return False
    axis, other = best
    row[axis], other[axis] = other[axis], row[axis]
    return True


def _replace(
    rows: list[list[str]],
    row: list[str],
    axis: int,
    vocabulary: Vocabulary,
    forbidden: frozenset[frozenset[str]],
) -> None:
    """Gives `row` the least used value of the axis that lessens its conflicts, if there is one."""
    used = Counter(other[axis] for other in rows)
    present = _conflicts(row, forbidden)
    for word in sorted(vocabulary.axis(AXES[axis]), key=lambda word: used[word]):
        if _conflicts([*row[:axis], word, *row[axis + 1 :]], forbidden) < present:
            row[axis] = word
            return


def _place_expressions(
    rows: list[list[str]], vocabulary: Vocabulary, forbidden: frozenset[frozenset[str]], rng: random.Random
) -> None:
    """Expressions are spread evenly over the shots that show a face; the others get none."""
    faceless = set(vocabulary.faceless)
    seen = [row for row in rows if row[0] not in faceless and row[2] not in faceless]
    for row in rows:
        row[1] = ""
    for row, word in zip(seen, _even_column(vocabulary.expressions, len(seen), rng), strict=True):
        row[1] = word
    _repair(seen, (1,), vocabulary, forbidden, rng)
