"""What the evaluation found, as it is stored in evaluation/scores.json: the same held-out prompts and
seeds without and with the LoRA, so that a figure is always a comparison and never a claim."""

from __future__ import annotations

from math import sqrt
from statistics import stdev
from typing import Literal

from pydantic import BaseModel, ConfigDict, computed_field

from lora_foundry.domain.assessment import Assessment, Found, assess
from lora_foundry.domain.shots import Shot

Side = Literal["before", "after", "leak", "last", "choice"]


class EvaluationPicture(BaseModel):
    """One picture: its file in the folder of evaluation pictures, what it was asked for, and what was seen in
    it.

    traits: how many of the described traits were visible, and how many of them right. shot: the same for the
    parts of the prompt, where a part that cannot be seen counts as wrong.
    """

    model_config = ConfigDict(frozen=True)

    file: str
    shot: Shot
    prompt: str
    seed: int
    seen: dict[str, str] = {}
    traits_right: int = 0
    traits_seen: int = 0
    shot_right: int = 0
    shot_asked: int = 0


class ScoreRow(BaseModel):
    """The scores of one group of pictures; shares from 0 to 1, None where no instrument could tell.

    identity: the mean, over the described traits, of the share of pictures that show the right value among
    those in which the trait is visible. adherence: the same over the parts of the prompted shot. similarity:
    mean cosine to the mean of the training set. variety: mean difference of all pairs of pictures (1 minus the
    correlation of their thumbnails). nearest: mean difference of each picture to the nearest training picture.
    memorised: share of pictures nearer to one than training pictures are to each other. sound: share that is neither
    blank nor blurred.
    """

    model_config = ConfigDict(frozen=True)

    identity: float | None = None
    adherence: float | None = None
    identity_by_trait: dict[str, float] = {}
    adherence_by_attribute: dict[str, float] = {}
    similarity: float | None = None
    variety: float | None = None
    nearest: float | None = None
    memorised: float | None = None
    sound: float | None = None
    pictures: tuple[EvaluationPicture, ...] = ()

    @property
    def uncertainty(self) -> float | None:
        """How far identity may be off because so few pictures were drawn: 1.96 standard errors of the pictures' own
        shares. None for fewer than two pictures that show any trait."""
        shares = [each.traits_right / each.traits_seen for each in self.pictures if each.traits_seen]
        if len(shares) < 2:
            return None
        return round(1.96 * stdev(shares) / sqrt(len(shares)), 4)


class Candidate(BaseModel):
    """One checkpoint at one strength, measured on prompts and seeds that no other figure uses.

    identity: cosine to the training set as a share of the set's own (or, without an embedder, the share of traits).
    adherence: the share of the prompt that is seen; without a tagger, the variety kept of the base's. score: F-beta of
    the two, 0 where too many pictures are broken.
    """

    model_config = ConfigDict(frozen=True)

    step: int
    strength: float
    sha256: str
    identity: float | None = None
    adherence: float | None = None
    memorised: float | None = None
    sound: float = 1.0
    score: float = 0.0


class Evaluation(BaseModel):
    """scores.json: written last by the evaluate stage, so its existence means done.

    before: without the LoRA. after: with it, at `strength`. leak: with it, but without the trigger in the
    prompt, one seed a prompt: how much of the character comes uncalled. traits: what the tagger understood of
    the description. held_out: how many of the shots no training picture shows. self_similarity: how close
    each picture of the training set is to the mean of the others. note: why scores are None; empty where all
    were measured. step, strength: what was chosen among `candidates`; lora_sha256: of evaluation/lora.safetensors,
    which is that checkpoint with what was found in its metadata; trained_sha256: of the training's result.
    overfit_from: the first later step at which the score had fallen, or pictures of the training set came back.
    """

    model_config = ConfigDict(frozen=True)

    character: str
    trigger: str
    model: str
    before: ScoreRow
    after: ScoreRow
    leak: ScoreRow
    strength: float
    step: int = 0
    candidates: tuple[Candidate, ...] = ()
    overfit_from: int | None = None
    lora_sha256: str
    trained_sha256: str = ""
    traits: dict[str, str] = {}
    shots: int
    held_out: int
    self_similarity: float | None = None
    note: str = ""
    fingerprint: str
    seconds: float

    def identity_of(self, row: ScoreRow) -> float | None:
        """Identity by the traits; where none were read, likeness as a share of the set's own."""
        return row.identity if row.identity is not None else own_share(row.similarity, self.self_similarity)

    # Stored in scores.json, so that pages and programs read the words that the report has. mypy knows no decorated
    # properties; this is how pydantic's documentation has them.
    @computed_field  # type: ignore[prop-decorator]
    @property
    def assessment(self) -> Assessment:
        """What these scores mean."""
        after, before = self.after, self.before
        return assess(
            Found(
                identity=self.identity_of(after),
                before=self.identity_of(before),
                uncalled=self.identity_of(self.leak),
                adherence=after.adherence,
                adherence_before=before.adherence,
                memorised=after.memorised,
                sound=after.sound,
            )
        )

    def side(self, side: Side) -> ScoreRow:
        """The scores of one side by its name."""
        row: ScoreRow = getattr(self, side)
        return row

    def best(self) -> EvaluationPicture:
        """The picture with the LoRA that shows most of the character and of its prompt; the first of
        equals."""

        def misses(picture: EvaluationPicture) -> tuple[int, int, int]:
            hidden = len(self.traits) - picture.traits_seen
            return (
                picture.traits_seen - picture.traits_right,
                picture.shot_asked - picture.shot_right,
                hidden,
            )

        return min(self.after.pictures, key=misses)


def own_share(similarity: float | None, own: float | None) -> float | None:
    """Likeness to the training set as a share, 0 to 1, of what the set's own pictures reach."""
    if similarity is None or own is None or own <= 0:
        return None
    return round(min(max(similarity / own, 0.0), 1.0), 4)


def f_beta(adherence: float, identity: float, beta: float) -> float:
    """Adherence and identity in one figure, the latter `beta` times as important (van Rijsbergen 1979)."""
    square = beta * beta
    low = square * adherence + identity
    return round((1 + square) * adherence * identity / low, 4) if low > 0 else 0.0
