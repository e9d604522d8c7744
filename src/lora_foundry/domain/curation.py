"""What curation decided and why, for every picture that was made: a set nobody can explain cannot be
trusted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict

from lora_foundry.domain.shots import AXES, Shot, Vocabulary

RejectionCode = Literal[
    "undecodable", "wrong_size", "blank", "duplicate", "blurred", "subjects", "traits", "identity"
]

# From the least harmful in a training set to the most; all but the last two can be lived with where nothing better
# came.
SEVERITY: tuple[RejectionCode, ...] = (
    "identity",
    "traits",
    "blurred",
    "subjects",
    "duplicate",
    "blank",
    "wrong_size",
    "undecodable",
)
UNUSABLE: frozenset[RejectionCode] = frozenset({"wrong_size", "undecodable"})


class Measures(BaseModel):
    """What was measured of one picture; None where it could not be.

    face: left, top, width and height of the only face, as shares of the picture's width and height.
    """

    model_config = ConfigDict(frozen=True)

    contrast: float | None = None
    sharpness: float | None = None
    hash: str = ""
    likeness: float | None = None
    subjects: int | None = None
    face: tuple[float, float, float, float] | None = None
    traits_right: int | None = None
    traits_seen: int | None = None

    @property
    def trait_share(self) -> float:
        """The share of the described traits that are seen in the picture and right; 1 where none can be
        judged."""
        return (
            self.traits_right / self.traits_seen
            if self.traits_right is not None and self.traits_seen
            else 1.0
        )


class Reason(BaseModel):
    """One thing that is wrong with a picture, as a word for programs and a sentence for people; `other` is the picture
    that it is too much like."""

    model_config = ConfigDict(frozen=True)

    code: RejectionCode
    text: str
    other: str = ""


class Verdict(BaseModel):
    """The decision on one picture. `file` is relative to the dataset folder.

    An accepted picture with reasons is one that was taken although something is wrong with it, because the
    budget was spent and nothing better came for its shot.
    """

    model_config = ConfigDict(frozen=True)

    file: str
    index: int
    attempt: int
    seed: int
    accepted: bool
    reasons: tuple[Reason, ...] = ()
    measures: Measures = Measures()

    @property
    def usable(self) -> bool:
        return not any(reason.code in UNUSABLE for reason in self.reasons)

    def badness(self) -> tuple[int, int, float, float, float, int]:
        """Sorts candidates for one shot, the best first."""
        worst = max((SEVERITY.index(reason.code) for reason in self.reasons), default=-1)
        likeness, sharpness = self.measures.likeness or 0.0, self.measures.sharpness or 0.0
        share = self.measures.trait_share
        return (worst, len(self.reasons), -share, -likeness, -sharpness, self.attempt)


class Coverage(BaseModel):
    """How often each word of one axis of the shots is shown by the accepted pictures."""

    model_config = ConfigDict(frozen=True)

    axis: str
    counts: dict[str, int]
    missing: tuple[str, ...]


class CurationResult(BaseModel):
    """curation.json: written last by the curate stage, so its existence means done.

    own: the user's pictures in images/, which are measured and kept whatever was found. left_out: shots, counted from
    0, for which the set holds no picture. distance: mean pairwise cosine distance of the set as the embedder sees it;
    cohesion: mean cosine of its core; least_likeness: what a picture had to reach.
    """

    model_config = ConfigDict(frozen=True)

    character: str
    fingerprint: str
    wanted: int
    made: int
    budget: int
    accepted: tuple[Verdict, ...]
    rejected: tuple[Verdict, ...]
    coverage: tuple[Coverage, ...]
    own: tuple[Verdict, ...] = ()
    left_out: tuple[int, ...] = ()
    distance: float | None = None
    cohesion: float | None = None
    least_likeness: float | None = None
    seconds: float


def cover(vocabulary: Vocabulary, shots: Sequence[Shot]) -> tuple[Coverage, ...]:
    """The coverage of every axis, words that nothing shows included."""
    return tuple(
        _cover_axis(axis, vocabulary.axis(axis), [shot[at] for shot in shots]) for at, axis in enumerate(AXES)
    )


def _cover_axis(axis: str, words: Sequence[str], shown: Iterable[str]) -> Coverage:
    used = Counter(shown)
    return Coverage(
        axis=axis,
        counts={word: used[word] for word in words},
        missing=tuple(word for word in words if not used[word]),
    )
