"""What the evaluation found, as it is stored in evaluation/scores.json: the same held-out prompts and
seeds without and with the LoRA, so that a figure is always a comparison and never a claim."""

from __future__ import annotations

from math import sqrt
from statistics import stdev
from typing import Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, computed_field

from lora_foundry.domain.assessment import Assessment, BleedFound, Found, Subject, assess
from lora_foundry.domain.shots import Shot

_SHORTEST_WAY = 0.02  # of a cosine
# Where a field has a second alias, files of earlier versions call it that.
Side = Literal["before", "after", "without_trigger", "before_without_trigger", "last", "choice"]


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
    those in which the trait is visible. adherence: the same over the parts of the prompted shot. likeness:
    mean cosine to the mean of the training set. variety: mean difference of all pairs of pictures (1 minus the
    correlation of their thumbnails). nearest: mean difference of each picture to the nearest training picture.
    memorised: share of pictures nearer to one than training pictures are to each other. sound: share that is neither
    blank nor blurred.
    """

    model_config = ConfigDict(frozen=True, validate_by_name=True)

    identity: float | None = None
    adherence: float | None = None
    identity_by_trait: dict[str, float] = {}
    adherence_by_attribute: dict[str, float] = {}
    likeness: float | None = Field(None, validation_alias=AliasChoices("likeness", "similarity"))
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


class Scores(BaseModel):
    """What is said of a LoRA on every page, command, card and message, under one name a measure; None where the recipe
    names no instrument that could tell. Shares from 0 to 1, likeness a cosine.

    before, after: without the LoRA and with it. subject: what `identity` is of. uncertainty: see ScoreRow.
    identity_without_trigger: how much of the character appears with the LoRA and without the trigger; lower is better.
    """

    model_config = ConfigDict(frozen=True)

    identity_before: float | None = None
    identity_after: float | None = None
    identity_uncertainty: float | None = None
    identity_without_trigger: float | None = None
    adherence_before: float | None = None
    adherence_after: float | None = None
    likeness_before: float | None = None
    likeness_after: float | None = None
    # Said of a style alone: programs read the scores of characters as numbers, one and all.
    subject: Subject = Field("character", exclude_if=lambda subject: subject == "character")

    @property
    def measure(self) -> str:
        """What identity is called: of a style it says how much of it comes."""
        return "identity" if self.subject == "character" else "style"


class Candidate(BaseModel):
    """One checkpoint at one strength, measured on prompts and seeds that no other figure uses.

    identity: cosine to the training set as a share of the set's own (or, without an embedder, the share of traits).
    adherence: the share of the prompt that is seen; without a tagger, the variety kept of the base's. score: F-beta of
    the two, 0 where too many pictures are broken. pictures: on how many it was compared; one that was dropped early has
    fewer, and its figures are made comparable by those of the last checkpoint on the same shots.
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
    pictures: int = 0


class Bleed(BaseModel):
    """How much of another character a trigger word brings: of the traits in which the two differ, the mean share of
    pictures that show the other's value. chance: the same without the LoRA."""

    model_config = ConfigDict(frozen=True)

    called: str
    shown: str
    share: float
    chance: float


class MemberScores(BaseModel):
    """What was measured of one character of a cast, as `Scores` has it. traits: what the tagger understood of its
    description."""

    model_config = ConfigDict(frozen=True)

    name: str
    trigger: str
    traits: dict[str, str] = {}
    identity_before: float | None = None
    identity_after: float | None = None
    identity_without_trigger: float | None = None
    adherence_after: float | None = None


class CastScores(BaseModel):
    """Of a LoRA that draws several characters. bleed: of every trigger into every other character; none where no tagger
    reads traits. drift: how much worse prompts without any trigger are followed with the LoRA than without it."""

    model_config = ConfigDict(frozen=True)

    members: tuple[MemberScores, ...]
    bleed: tuple[Bleed, ...] = ()
    drift: float | None = None

    @property
    def mean_bleed(self) -> float | None:
        """Mean over all ordered pairs, above chance; None where nothing was measured."""
        if not self.bleed:
            return None
        return round(sum(each.share - each.chance for each in self.bleed) / len(self.bleed), 4)

    @property
    def worst_bleed(self) -> Bleed | None:
        """The pair whose triggers are least kept apart."""
        return max(self.bleed, key=lambda each: each.share - each.chance, default=None)

    def bleed_of(self, called: str, shown: str) -> Bleed | None:
        """What the trigger of one brings of the other; None for a pair that differs in nothing that was read."""
        return next((each for each in self.bleed if (each.called, each.shown) == (called, shown)), None)


class Evaluation(BaseModel):
    """scores.json: written last by the evaluate stage, so its existence means done.

    before: without the LoRA. after: with it, at `strength`. without_trigger: with it, but without the trigger in
    the prompt, one seed a prompt: how much of the character appears without the trigger. traits: what the tagger understood of
    the description. held_out: how many of the shots no training picture shows. own_likeness: how close
    each picture of the training set is to the mean of the others. note: why scores are None; empty where all
    were measured. step, strength: what was chosen among `candidates`; lora_sha256: of evaluation/lora.safetensors,
    which is that checkpoint with what was found in its metadata; trained_sha256: of the training's result.
    overfit_from: the first later step at which the score had fallen, or pictures of the training set came back. cast: of
    several characters in one LoRA, each with its own figures; the rows are their means.
    """

    model_config = ConfigDict(frozen=True, validate_by_name=True)

    character: str
    trigger: str
    model: str
    before: ScoreRow
    after: ScoreRow
    without_trigger: ScoreRow = Field(validation_alias=AliasChoices("without_trigger", "leak"))
    strength: float
    step: int = 0
    candidates: tuple[Candidate, ...] = ()
    overfit_from: int | None = None
    lora_sha256: str
    trained_sha256: str = ""
    traits: dict[str, str] = {}
    shots: int
    held_out: int
    subject: Subject = "character"
    own_likeness: float | None = Field(None, validation_alias=AliasChoices("own_likeness", "self_similarity"))
    note: str = ""
    cast: CastScores | None = None
    fingerprint: str
    seconds: float

    def identity_of(self, row: ScoreRow) -> float | None:
        """Identity by the traits; where none were read, likeness as a share of the set's own. Of a style the share of the
        way from the base's likeness to the set's own."""
        if self.subject == "style":
            return way_share(row.likeness, self.before.likeness, self.own_likeness)
        return row.identity if row.identity is not None else own_share(row.likeness, self.own_likeness)

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
                without_trigger=self.identity_of(self.without_trigger),
                adherence=after.adherence,
                adherence_before=before.adherence,
                memorised=after.memorised,
                sound=after.sound,
                bleed=worst_of(self.cast),
                subject=self.subject,
            )
        )

    @property
    def scores(self) -> Scores:
        """The figures that people are told, wherever they are told."""
        after, before, style = self.after, self.before, self.subject == "style"
        return Scores(
            identity_before=self.identity_of(before),
            identity_after=self.identity_of(after),
            identity_uncertainty=after.uncertainty if after.identity is not None else None,
            # A style may come without its trigger, and nobody wants to be told a figure that means nothing.
            identity_without_trigger=None if style else self.identity_of(self.without_trigger),
            subject=self.subject,
            adherence_before=before.adherence,
            adherence_after=after.adherence,
            likeness_before=before.likeness,
            likeness_after=after.likeness,
        )

    def words_of(self, picture: EvaluationPicture) -> str:
        """What a picture was to show, as people read it; of a cast with the character's name."""
        asked = picture.prompt.split(", ")
        members = self.cast.members if self.cast else ()
        called = [each.name for each in members if each.trigger in asked]
        return ": ".join([*called, ", ".join(picture.shot.words())])

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


def worst_of(cast: CastScores | None) -> BleedFound | None:
    """What the assessment says of the pair that is least kept apart; None for one character."""
    worst = cast.worst_bleed if cast else None
    if worst is None:
        return None
    return BleedFound(worst.called, worst.shown, round(worst.share - worst.chance, 4))


def own_share(likeness: float | None, own: float | None) -> float | None:
    """Likeness to the training set as a share, 0 to 1, of what the set's own pictures reach."""
    if likeness is None or own is None or own <= 0:
        return None
    return round(min(max(likeness / own, 0.0), 1.0), 4)


def way_share(likeness: float | None, base: float | None, own: float | None) -> float | None:
    """How far a likeness lies on the way from the base's to the set's own, 0 to 1; None where the way is too short to tell,
    since the base draws like the set already."""
    if likeness is None or base is None or own is None or own - base < _SHORTEST_WAY:
        return None
    return round(min(max((likeness - base) / (own - base), 0.0), 1.0), 4)


def f_beta(adherence: float, identity: float, beta: float) -> float:
    """Adherence and identity in one figure, the latter `beta` times as important (van Rijsbergen 1979)."""
    square = beta * beta
    low = square * adherence + identity
    return round((1 + square) * adherence * identity / low, 4) if low > 0 else 0.0
