"""Measures a LoRA that draws several characters: each by its own trigger, each trigger for what it brings of the others,
and the base without any trigger, which should draw as it did. What one character's evaluation does is in `step`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import permutations
from math import ceil
from time import perf_counter
from typing import NamedTuple

from PIL import Image

from lora_foundry.domain.dataset import PictureRecord
from lora_foundry.domain.evaluation import (
    Bleed,
    Candidate,
    CastScores,
    Evaluation,
    MemberScores,
    ScoreRow,
    Side,
)
from lora_foundry.domain.held_out import evaluation_prompts, held_out_shots
from lora_foundry.domain.lora import TrainedLora
from lora_foundry.domain.run import Run, fingerprint
from lora_foundry.domain.shots import Shot
from lora_foundry.files.paths import RunPaths
from lora_foundry.files.storage import read_model, require_model, write_model
from lora_foundry.files.training_set import TrainingSet, read_set
from lora_foundry.ports import Ports, ProgressCallback, Trait
from lora_foundry.stages._shared.report import write_report
from lora_foundry.stages.evaluate.before_after import draw_before_after
from lora_foundry.stages.evaluate.choosing import (
    Choice,
    ScoreWeights,
    choices,
    clearly_best_of,
    demanded,
    overfit_from,
    rate,
)
from lora_foundry.stages.evaluate.pictures import EvaluationPictures
from lora_foundry.stages.evaluate.scoring import (
    EvaluationMetrics,
    hears_shots,
    mean_share,
    own_likeness,
    score,
    shares_right,
)
from lora_foundry.stages.evaluate.step import (
    detail_of,
    fingerprint_of,
    is_whole,
    keep_chosen,
    metrics_of,
    note_of,
    trained_shots,
    with_lora,
)

_FEWEST_CHOICE_PROMPTS = 2  # a character
_MESSAGES: dict[Side, str] = {
    "before": "without the LoRA",
    "after": "with the LoRA",
    "before_without_trigger": "without the LoRA and any trigger",
    "without_trigger": "without any trigger",
}


class _Member(NamedTuple):
    """One of the characters, and what its pictures are measured with."""

    run: Run
    training_set: TrainingSet
    metrics: EvaluationMetrics
    own: float | None
    shots: tuple[Shot, ...]


class _Drawn(NamedTuple):
    """One side's pictures of one character, and what was found of them."""

    records: Sequence[PictureRecord]
    images: Sequence[Image.Image]
    row: ScoreRow


def run(run: Run, ports: Ports, progress: ProgressCallback) -> Evaluation:
    """Chooses a checkpoint for all members together, draws and scores each of them, writes the report. Raises as the
    evaluation of one character does."""
    started, paths = perf_counter(), RunPaths(run.dataset_dir, run.character.slug)
    lora = require_model(paths.training_result, TrainedLora, "train")
    members, model = [_member(each, ports) for each in run.member_runs], ports.generator.model
    made_from = fingerprint(
        "evaluate-cast-1", *(fingerprint_of(each.run, each.training_set, lora, model) for each in members)
    )
    earlier = read_model(paths.evaluation_result, Evaluation)
    if earlier is not None and earlier.fingerprint == made_from and is_whole(paths, earlier):
        return earlier
    pictures = EvaluationPictures(ports.generator, run.recipe.generate.batch_size, progress)
    measuring = _Measuring(run, paths, pictures, members, model)
    best, candidates = measuring.choose(choices(lora, paths, run.recipe.evaluate))
    pictures.total = pictures.done + measuring.to_draw()
    sides = {side: measuring.side(side, None if "before" in side else best) for side in _MESSAGES}
    rows = {side: _mean([each.row for each in drawn]) for side, drawn in sides.items()}
    result = Evaluation(
        character=run.character.name,
        trigger=run.trigger,
        model=model,
        before=rows["before"],
        after=rows["after"],
        without_trigger=rows["without_trigger"].model_copy(
            update={
                "pictures": sides["without_trigger"][0].row.pictures
            }  # the same for all: no prompt names anyone
        ),
        strength=best.use.strength,
        step=best.step,
        candidates=candidates,
        overfit_from=overfit_from(candidates, best.step, best.use.strength),
        lora_sha256="",
        trained_sha256=lora.sha256,
        shots=sum(len(each.shots) for each in members),
        held_out=sum(len(set(each.shots) - set(_known(members))) for each in members),
        own_likeness=_mean_of([each.own for each in members]),
        note=note_of(
            members[0].run, ports.tagger, [trait for each in members for trait in each.metrics.traits]
        ),
        cast=_cast_scores(members, sides),
        fingerprint=made_from,
        seconds=round(perf_counter() - started, 2),
    )
    result = keep_chosen(run, paths, result, best)
    _draw_grid(run, paths, result, sides)
    write_report(run, paths, result)
    write_model(paths.evaluation_result, result)
    return result


class _Measuring(NamedTuple):
    """What one evaluation of a cast draws with and measures with."""

    run: Run
    paths: RunPaths
    pictures: EvaluationPictures
    members: Sequence[_Member]
    model: str

    def choose(self, options: Sequence[Choice]) -> tuple[Choice, tuple[Candidate, ...]]:
        """The best of the options by the mean over the members, on a few shots of their own."""
        section = self.run.recipe.evaluate
        named = demanded(options, section)
        if len(options) == 1:
            return options[0], ()
        count = max(_FEWEST_CHOICE_PROMPTS, ceil(section.choice_prompts / len(self.members)))
        known = [*_known(self.members), *(shot for each in self.members for shot in each.shots)]
        shots = held_out_shots(self.run.recipe.shots, count, self.run.recipe.seed + 1, known)
        heard = all(hears_shots(shots, each.metrics) for each in self.members)
        self.pictures.total = count * len(self.members) * (len(options) + (not heard))
        variety = None
        if not heard:
            base = self._draw("choice", "choice/base", None, shots, "checkpoints: the base")
            variety = _mean([each.row for each in base]).variety
        own, rated = _mean_of([each.own for each in self.members]), list[tuple[Choice, Candidate]]()
        for option in options:
            drawn = self._draw(
                "choice", f"choice/{option.name}", option, shots, f"checkpoints: {option.name}"
            )
            row = _mean([each.row for each in drawn])
            rated.append((option, rate(option, row, ScoreWeights(own, variety, section))))
        return named or clearly_best_of(rated), tuple(candidate for _, candidate in rated)

    def side(self, side: Side, choice: Choice | None) -> list[_Drawn]:
        """The pictures of one side, a member each; without a trigger there is one set, which all measure."""
        return self._draw(side, side, choice, None, _MESSAGES[side])

    def to_draw(self) -> int:
        """How many pictures the sides have."""
        called = sum(len(self._records(place, "after", None, None)) for place in range(len(self.members)))
        return 2 * called + 2 * len(self._records(0, "without_trigger", None, None))

    def _draw(
        self, side: Side, folder: str, choice: Choice | None, shots: Sequence[Shot] | None, message: str
    ) -> list[_Drawn]:
        """Draws all members' pictures at once, so that batches are full, and gives each its own."""
        alike = "without_trigger" in side
        parts = [
            self._records(place, side, choice, shots) for place in range(1 if alike else len(self.members))
        ]
        records = [each for part in parts for each in part]
        use = choice.use if choice else None
        images = self.pictures.draw(self.paths.evaluation_pictures(folder), records, use, message)
        found, first = list[_Drawn](), 0
        for place, member in enumerate(self.members):
            part = parts[0 if alike else place]
            own = images if alike else images[first : first + len(part)]
            first += len(part)
            files = [f"{folder}/{each.file}" for each in part]
            found.append(_Drawn(part, own, score(files, part, own, member.metrics)))
        return found

    def _records(
        self, place: int, side: Side, choice: Choice | None, shots: Sequence[Shot] | None
    ) -> list[PictureRecord]:
        """What is asked for, with file names and keys that no other member has."""
        member, model = self.members[place], with_lora(self.model, choice)
        character = member.run.character
        asked = evaluation_prompts(character, self.run.recipe, shots or member.shots, model, side)
        if "without_trigger" in side:
            return asked
        return [
            each.model_copy(
                update={
                    "file": f"{character.slug}_{each.file}",
                    "request": each.request.model_copy(update={"key": f"{place}.{each.request.key}"}),
                }
            )
            for each in asked
        ]


def _member(run: Run, ports: Ports) -> _Member:
    paths = RunPaths(run.dataset_dir, run.character.slug)
    training_set = read_set(paths)
    metrics = metrics_of(run, ports, training_set)
    own = None if metrics.own is None else own_likeness(metrics.own)
    section = run.recipe.evaluate
    shots = held_out_shots(
        run.recipe.shots, section.prompts, run.recipe.seed, trained_shots(paths, training_set)
    )
    return _Member(run, training_set, metrics, own, shots)


def _known(members: Sequence[_Member]) -> list[Shot]:
    """The shots that any training picture shows."""
    return [
        shot
        for each in members
        for shot in trained_shots(RunPaths(each.run.dataset_dir, each.run.character.slug), each.training_set)
    ]


def _cast_scores(members: Sequence[_Member], sides: Mapping[Side, Sequence[_Drawn]]) -> CastScores:
    """Each member's own figures, the matrix of bleed, and the drift of the base."""
    told = list[MemberScores]()
    for place, member in enumerate(members):
        row = {side: drawn[place].row for side, drawn in sides.items()}
        told.append(
            MemberScores(
                name=member.run.character.name,
                trigger=member.run.character.trigger,
                traits={trait.attribute: trait.value for trait in member.metrics.traits},
                identity_before=row["before"].identity,
                identity_after=row["after"].identity,
                identity_without_trigger=row["without_trigger"].identity,
                adherence_after=row["after"].adherence,
            )
        )
    bleed = []
    for one, other in permutations(range(len(members)), 2):
        apart = _apart(members[one].metrics.traits, members[other].metrics.traits)
        if apart:
            share, chance = (_shown(sides[side][one].row, apart) for side in ("after", "before"))
            bleed.append(Bleed(called=told[one].name, shown=told[other].name, share=share, chance=chance))
    found = [sides[side][0].row.adherence for side in ("before_without_trigger", "without_trigger")]
    drift = None if found[0] is None or found[1] is None else round(found[0] - found[1], 4)
    return CastScores(members=tuple(told), bleed=tuple(bleed), drift=drift)


def _apart(one: Sequence[Trait], other: Sequence[Trait]) -> list[Trait]:
    """The other's traits in which it differs from the first, where both are told."""
    own = {trait.attribute: trait.value for trait in one}
    return [trait for trait in other if own.get(trait.attribute, trait.value) != trait.value]


def _shown(row: ScoreRow, traits: Sequence[Trait]) -> float:
    """The mean over the traits of the share of pictures that show this value, where the trait is visible."""
    seen = [each.seen for each in row.pictures]
    return mean_share(shares_right([traits] * len(seen), seen)) or 0.0


def _mean(rows: Sequence[ScoreRow]) -> ScoreRow:
    """The means of several rows, with the pictures of all."""
    shares = ("identity", "adherence", "likeness", "variety", "nearest", "memorised", "sound")
    return ScoreRow(
        **{name: _mean_of([getattr(row, name) for row in rows]) for name in shares},
        identity_by_trait=_mean_by_name([row.identity_by_trait for row in rows]),
        adherence_by_attribute=_mean_by_name([row.adherence_by_attribute for row in rows]),
        pictures=tuple(picture for row in rows for picture in row.pictures),
    )


def _mean_by_name(shares: Sequence[Mapping[str, float]]) -> dict[str, float]:
    names = dict.fromkeys(name for each in shares for name in each)
    return {name: _mean_of([each.get(name) for each in shares]) or 0.0 for name in names}


def _mean_of(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return round(sum(known) / len(known), 4) if known else None


def _draw_grid(run: Run, paths: RunPaths, result: Evaluation, sides: Mapping[Side, Sequence[_Drawn]]) -> None:
    """The same prompts without and with the LoRA, spread over all members."""
    records = [record for drawn in sides["after"] for record in drawn.records]
    before, after = (
        [image for drawn in sides[side] for image in drawn.images] for side in ("before", "after")
    )
    names = [
        member.character.name
        for member, drawn in zip(run.members, sides["after"], strict=True)
        for _ in drawn.records
    ]
    details = (detail_of(result, result.before), detail_of(result, result.after))
    draw_before_after(paths.before_after, run, records, before, after, details, names=names)
