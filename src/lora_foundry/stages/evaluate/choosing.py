"""Which checkpoint, at which strength: the last one is seldom the best. Each is measured on a few prompts and seeds of
their own, and the best of them has to hold its place against the last one in the evaluation itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from lora_foundry.domain.dataset import PictureRecord
from lora_foundry.domain.evaluation import Candidate, ScoreRow, f_beta, own_share
from lora_foundry.domain.lora import LoraUse, TrainedLora
from lora_foundry.domain.sections import EvaluateSection
from lora_foundry.domain.sharing import needed_metadata
from lora_foundry.errors import BaseModelError, InputError, VerificationError
from lora_foundry.files.hashing import file_hash
from lora_foundry.files.paths import RunPaths
from lora_foundry.files.safetensors import read_header, rewrite_metadata

WORSE = 0.05  # by so much a later checkpoint scores less where training went on too long
CLEARLY = 0.03  # by less than so much an evaluation's few pictures cannot tell two checkpoints apart


class Choice(NamedTuple):
    """A checkpoint's file at a strength."""

    step: int
    sha256: str
    use: LoraUse

    @property
    def name(self) -> str:
        return candidate_name(self.step, self.use.strength)


def candidate_name(step: int, strength: float) -> str:
    """The folder of the pictures by which a checkpoint at a strength is compared with the others."""
    return f"step-{step:05d}-at-{strength:g}"


class ScoreWeights(NamedTuple):
    """What scores are made from: the set's own likeness, the base's variety, and how much identity weighs."""

    own: float | None
    variety: float | None
    section: EvaluateSection


def choices(lora: TrainedLora, paths: RunPaths, section: EvaluateSection) -> list[Choice]:
    """Every checkpoint that is there at every strength, the last one at the recipe's strength last."""
    last = Choice(lora.steps, lora.sha256, LoraUse(path=paths.trained_lora, strength=section.strength))
    if not section.choose:
        return [last]
    saved = [
        (each.step, each.sha256, path)
        for each in lora.saved
        if each.step < lora.steps and (path := paths.saved_loras / each.path.name).is_file()
        if file_hash(path) == each.sha256
    ]
    files = [*saved, (lora.steps, lora.sha256, paths.trained_lora)]
    found = [
        Choice(step, digest, LoraUse(path=path, strength=strength))
        for step, digest, path in files
        for strength in section.strengths or (section.strength,)
    ]
    return [*(each for each in found if each != last), last]


def demanded(options: Sequence[Choice], section: EvaluateSection) -> Choice | None:
    """The option that the recipe names by its step; None where it leaves the choice to measurement.

    Raises InputError where there is no such checkpoint.
    """
    if not section.step:
        return None
    for option in options:
        if (option.step, option.use.strength) == (section.step, section.strength):
            return option
    steps = ", ".join(str(step) for step in sorted({option.step for option in options}))
    raise InputError(
        f"evaluate.step = {section.step} at strength {section.strength:g} is not among the checkpoints tried; "
        f"there are steps {steps}."
    )


def rate(choice: Choice, row: ScoreRow, weights: ScoreWeights) -> Candidate:
    """A measured choice with its score."""
    section = weights.section
    identity = own_share(row.likeness, weights.own)
    identity = row.identity if identity is None else identity
    adherence = row.adherence if row.adherence is not None else _kept(row.variety, weights.variety)
    sound = 1.0 if row.sound is None else row.sound
    score = 0.0
    if identity is not None and adherence is not None and sound >= section.min_sound:
        score = f_beta(adherence, identity, section.beta)
    return Candidate(
        step=choice.step,
        strength=choice.use.strength,
        sha256=choice.sha256,
        identity=identity,
        adherence=adherence,
        memorised=row.memorised,
        sound=sound,
        score=score,
    )


def _kept(variety: float | None, before: float | None) -> float | None:
    """The share of the base's variety that is left: a LoRA that does not listen draws the same picture always."""
    return None if variety is None or not before else round(min(variety / before, 1.0), 4)


def best_of(rated: Sequence[tuple[Choice, Candidate]]) -> Choice:
    """The highest score; of equals the one trained least, which has kept most of the base. The last where none could
    be rated."""
    if not any(candidate.score for _, candidate in rated):
        return rated[-1][0]
    return max(rated, key=lambda pair: (pair[1].score, -pair[0].step, -abs(pair[0].use.strength - 1)))[0]


def clearly_best_of(rated: Sequence[tuple[Choice, Candidate]]) -> Choice:
    """The best, or the last where that is not clearly worse."""
    best, (last, candidate) = best_of(rated), rated[-1]
    score = next(each.score for choice, each in rated if choice == best)
    return best if score > candidate.score + CLEARLY else last


def overfit_from(candidates: Sequence[Candidate], step: int, strength: float) -> int | None:
    """The first step after the chosen one at which the score had fallen clearly, or more than half of the pictures
    were training pictures again."""
    chosen = [each for each in candidates if each.step == step and each.strength == strength]
    for each in sorted(candidates, key=lambda each: each.step):
        if each.strength != strength or each.step < step:
            continue
        fallen = bool(chosen) and each.score < chosen[0].score - WORSE
        if fallen or (each.memorised or 0.0) > 0.5:
            return each.step
    return None


def record(source: Path, target: Path, notes: Mapping[str, str], minimal: bool = False) -> str:
    """Copies a LoRA with `notes` added to its metadata, tensors untouched, and returns the copy's SHA-256. `minimal`
    keeps of the rest only what a program needs to load it. Raises VerificationError for a file that is no safetensors."""
    try:
        metadata = {**read_header(source).metadata, **notes}
        rewrite_metadata(source, target, needed_metadata(metadata) if minimal else metadata)
    except (OSError, BaseModelError) as error:
        raise VerificationError(
            f"{source} is not a whole safetensors file ({error}); train again."
        ) from error
    return file_hash(target)


def requests_of(records: Sequence[PictureRecord], model: str) -> list[PictureRecord]:
    """The same evaluation prompts for another model."""
    return [each.model_copy(update={"model": model}) for each in records]
