"""Measures what the LoRA learned: the same held-out prompts and seeds without it and with it, where the
trigger word alone has to bring the character back. Pictures of an unchanged base and LoRA are taken from
the folder again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from time import perf_counter
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from lora_foundry.domain.dataset import GenerationMetadata, PictureRecord
from lora_foundry.domain.evaluation import Candidate, Evaluation, ScoreRow, Side
from lora_foundry.domain.held_out import evaluation_prompts, held_out_shots
from lora_foundry.domain.lora import TrainedLora
from lora_foundry.domain.run import Run, fingerprint
from lora_foundry.domain.shots import Shot
from lora_foundry.errors import StageError
from lora_foundry.files.hashing import file_hash, readable_hash
from lora_foundry.files.images import read_picture
from lora_foundry.files.paths import RunPaths
from lora_foundry.files.storage import read_model, require_model, write_model
from lora_foundry.files.training_set import SetPicture, TrainingSet, list_set, read_set
from lora_foundry.measures import Grey, thumbnail
from lora_foundry.ports import FloatArray, Ports, ProgressCallback, Tagger, Trait
from lora_foundry.stages._shared.drawing import load_made
from lora_foundry.stages._shared.reference import told_by_reference
from lora_foundry.stages._shared.report import write_report
from lora_foundry.stages.evaluate.before_after import draw_before_after
from lora_foundry.stages.evaluate.choosing import (
    Choice,
    ScoreWeights,
    choices,
    demanded,
    overfit_from,
    rate,
    record,
    requests_of,
)
from lora_foundry.stages.evaluate.pictures import EvaluationPictures
from lora_foundry.stages.evaluate.race import Draw, Rate, halves, race
from lora_foundry.stages.evaluate.scoring import (
    NO_THUMBNAILS,
    EvaluationMetrics,
    Observed,
    hears_shots,
    observe,
    own_likeness,
    own_nearness,
    summarise,
)

_AT_ONCE = 64  # training pictures in memory
_EDGE = 1024  # pixels at which a person's own picture is measured


def run(run: Run, ports: Ports, progress: ProgressCallback) -> Evaluation:
    """Chooses a checkpoint, makes the pictures that are not there yet, scores them, draws the grid, writes the report.

    Raises VerificationError for a LoRA that the base does not take, and what the generator raises.
    """
    started = perf_counter()
    paths = RunPaths(run.dataset_dir, run.character.slug)
    lora = require_model(paths.training_result, TrainedLora, "train")
    training_set, model = read_set(paths), ports.generator.model
    made_from = fingerprint_of(run, training_set, lora, model)
    earlier = read_model(paths.evaluation_result, Evaluation)
    if earlier is not None and earlier.fingerprint == made_from and is_whole(paths, earlier):
        return earlier
    trained = trained_shots(paths, training_set)
    shots = held_out_shots(run.recipe.shots, run.recipe.evaluate.prompts, run.recipe.seed, trained)
    pictures = EvaluationPictures(ports.generator, run.recipe.generate.batch_size, progress)
    metrics = metrics_of(run, ports, training_set)
    own = None if metrics.own is None else own_likeness(metrics.own)
    options = choices(lora, paths, run.recipe.evaluate)
    evaluation = EvaluationRun(run, paths, pictures, metrics, model, own)
    best, candidates = evaluation.choose(options, [*trained, *shots])
    best, rows, drawn = evaluation.measure(shots, best, options[-1])
    result = Evaluation(
        character=run.character.name,
        trigger=run.character.trigger,
        model=model,
        before=rows["before"],
        after=rows["after"],
        without_trigger=rows.get("without_trigger", ScoreRow()),
        strength=best.use.strength,
        step=best.step,
        candidates=candidates,
        overfit_from=overfit_from(candidates, best.step, best.use.strength),
        lora_sha256="",
        trained_sha256=lora.sha256,
        traits={trait.attribute: trait.value for trait in metrics.traits},
        shots=len(shots),
        held_out=len(set(shots) - set(trained)),
        own_likeness=own,
        subject=run.recipe.evaluate.subject,
        note=note_of(run, ports.tagger, metrics.traits),
        fingerprint=made_from,
        seconds=round(perf_counter() - started, 2),
    )
    result = keep_chosen(run, paths, result, best)
    details = (detail_of(result, result.before), detail_of(result, result.after))
    records = evaluation_prompts(run.character, run.recipe, shots, model, "before")
    draw_before_after(paths.before_after, run, records, drawn["before"], drawn["after"], details)
    write_report(run, paths, result)
    write_model(paths.evaluation_result, result)
    return result


def keep_chosen(run: Run, paths: RunPaths, result: Evaluation, best: Choice) -> Evaluation:
    """Copies the chosen checkpoint, with what was found in its metadata, to where it is published from; the result with
    that file's hash."""
    minimal = run.recipe.publish.metadata == "minimal"
    digest = record(best.use.path, paths.chosen_lora, _notes(result), minimal)
    return result.model_copy(update={"lora_sha256": digest})


class EvaluationRun(NamedTuple):
    """What one evaluation draws with and measures with."""

    run: Run
    paths: RunPaths
    pictures: EvaluationPictures
    metrics: EvaluationMetrics
    model: str
    own: float | None

    def choose(
        self, options: Sequence[Choice], known: Sequence[Shot]
    ) -> tuple[Choice, tuple[Candidate, ...]]:
        """The best of the options on a few shots of their own, and how each of them did. One option is no choice."""
        run, section = self.run, self.run.recipe.evaluate
        named = demanded(options, section)
        if len(options) == 1:
            return options[0], ()
        shots = held_out_shots(run.recipe.shots, section.choice_prompts, run.recipe.seed + 1, known)
        records = evaluation_prompts(run.character, run.recipe, shots, self.model, "choice")
        heard = hears_shots(shots, self.metrics)
        base = None if heard else _Side(self, "choice/base", records, None, "checkpoints: the base")
        self.pictures.total = len(records) * (len(options) + (base is not None))
        sides = {
            option.name: _Side(self, f"choice/{option.name}", records, option, f"checkpoints: {option.name}")
            for option in options
        }
        best, candidates = race(options, halves(len(records)), *self._comparing(sides, base))
        return named or best, candidates

    def measure(
        self, shots: Sequence[Shot], best: Choice, last: Choice
    ) -> tuple[Choice, dict[Side, ScoreRow], dict[Side, list[Image.Image]]]:
        """The chosen checkpoint and all sides: the base, that checkpoint, and it without the trigger. The best of the
        choice has to do clearly better on all prompts than the last one, else that is taken."""
        character, recipe = self.run.character, self.run.recipe

        def prompts(side: Side) -> list[PictureRecord]:
            return evaluation_prompts(character, recipe, shots, self.model, side)

        records = prompts("after")
        # Without an instrument nobody could tell what appears without the trigger.
        untold = prompts("without_trigger") if self.metrics.tagger or self.metrics.embedder else []
        before = _Side(self, "before", prompts("before"), None, "without the LoRA")
        sides = {"after": _Side(self, "after", records, best, "with the LoRA")}
        if best != last and not recipe.evaluate.step:
            sides["last"] = _Side(self, "last", records, last, "with the last checkpoint")
        self.pictures.total = self.pictures.done + len(records) * (1 + len(sides)) + len(untold)
        before.draw(len(records))
        chosen = "after"
        if "last" in sides:
            looks = [
                *range(recipe.generate.batch_size, len(records), recipe.generate.batch_size),
                len(records),
            ]
            by_name = {best.name: sides["after"], last.name: sides["last"]}
            base = None if hears_shots(shots, self.metrics) else before
            best = race([best, last], looks, *self._comparing(by_name, base)).best
            chosen = "last" if best == last else "after"
        self.pictures.total = self.pictures.done + len(records) - len(sides[chosen].observed) + len(untold)
        sides[chosen].draw(len(records))
        drawn: dict[Side, _Side] = {"before": before, "after": sides[chosen]}
        if untold:
            drawn["without_trigger"] = _Side(self, "without_trigger", untold, best, "without the trigger")
            drawn["without_trigger"].draw(len(untold))
        rows = {side: summarise(each.observed, self.metrics) for side, each in drawn.items()}
        return best, rows, {side: each.images for side, each in drawn.items()}

    def _comparing(self, sides: Mapping[str, _Side], base: _Side | None) -> tuple[Draw, Rate]:
        """How a race draws and rates options. base: where adherence is the variety that is left of the base's."""

        def draw(option: Choice, start: int, stop: int) -> None:
            if base is not None:
                base.draw(stop)
            sides[option.name].draw(stop)

        def rated(option: Choice, places: Sequence[int]) -> Candidate:
            row = summarise([sides[option.name].observed[place] for place in places], self.metrics)
            variety = None
            if base is not None:
                variety = summarise([base.observed[place] for place in places], self.metrics).variety
            return rate(option, row, ScoreWeights(self.own, variety, self.run.recipe.evaluate))

        return draw, rated


class _Side:
    """Pictures of one checkpoint, or of the base, which come a part at a time."""

    def __init__(
        self,
        within: EvaluationRun,
        folder: str,
        records: Sequence[PictureRecord],
        choice: Choice | None,
        message: str,
    ) -> None:
        self._within, self._folder, self._choice, self._message = within, folder, choice, message
        self._records = requests_of(records, with_lora(within.model, choice))
        self.images: list[Image.Image] = []
        self.observed: list[Observed] = []

    def draw(self, stop: int) -> None:
        """Draws and observes what is missing of the first `stop` pictures."""
        part = self._records[len(self.observed) : stop]
        if not part:
            return
        within, use = self._within, self._choice.use if self._choice else None
        folder = within.paths.evaluation_pictures(self._folder)
        images = within.pictures.draw(folder, part, use, self._message, self._records)
        files = [f"{self._folder}/{each.file}" for each in part]
        self.images += images
        self.observed += observe(files, part, images, within.metrics)


def with_lora(model: str, choice: Choice | None) -> str:
    """What a picture's record says it was made with."""
    return model if choice is None else f"{model} + LoRA {choice.sha256[:16]} at {choice.use.strength:g}"


def metrics_of(run: Run, ports: Ports, training_set: TrainingSet) -> EvaluationMetrics:
    """The instruments, and the training set as they see it. Few of its pictures are in memory at once. A copy of a crop is
    a copy, but what the character looks like is told by whole pictures, so that sets with and without crops compare."""
    rules, made, embedder = run.recipe.curate, run.recipe.generate, ports.embedder
    of_style = run.recipe.evaluate.subject == "style"  # which no description's traits tell
    features = () if of_style else (*run.character.tags, *told_by_reference(run, ports))
    rows: list[FloatArray] = []
    small: list[Grey] = []
    for start in range(0, len(training_set.pictures), _AT_ONCE):
        pictures = training_set.pictures[start : start + _AT_ONCE]
        images = [_load(picture) for picture in pictures]
        small += [thumbnail(image).ravel() for image in images]
        shown = [
            image
            for picture, image in zip(pictures, images, strict=True)
            if picture.crop is None or picture.crop.by_hand
        ]
        if of_style:  # finer strokes than it draws would be another style
            shown = [ImageOps.contain(image, (made.width, made.height)) for image in shown]
        if embedder is not None and shown:
            rows.append(embedder.embed(shown))
    thumbnails = np.stack(small) if small else NO_THUMBNAILS
    return EvaluationMetrics(
        traits=ports.tagger.understand(features) if ports.tagger else [],
        tagger=ports.tagger,
        embedder=embedder,
        own=np.concatenate(rows) if rows else None,
        thumbnails=thumbnails,
        own_nearness=own_nearness(thumbnails) if len(thumbnails) > 1 else 0.0,
        least_contrast=rules.min_contrast,
        least_sharpness=rules.min_sharpness / 2,
    )


def _load(picture: SetPicture) -> Image.Image:
    """A training picture as it is measured: one of a person's not larger than it must be."""
    if picture.generated:
        return load_made(picture.path, "generate")
    image = read_picture(picture.path, within=_EDGE)
    image.thumbnail((_EDGE, _EDGE))
    return image


def trained_shots(paths: RunPaths, training_set: TrainingSet) -> list[Shot]:
    """The shots that the set's drawn pictures show; of a person's own none is known. Raises StageError."""
    made = require_model(paths.generation_metadata, GenerationMetadata, "generate")
    present = training_set.names()
    listed = list_set(paths).names()
    for picture in made.pictures:
        if picture.file not in listed:
            raise StageError(
                f"The picture {paths.images / picture.file} is missing; run the 'generate' stage again."
            )
    return [picture.shot for picture in made.pictures if picture.file in present]


def _notes(result: Evaluation) -> dict[str, str]:
    """What the LoRA's own metadata says of its measurement."""
    found = {
        "lora_foundry.recommended_strength": f"{result.strength:g}",
        "lora_foundry.chosen_step": str(result.step),
    }
    for name, value in (
        ("identity", result.identity_of(result.after)),
        ("adherence", result.after.adherence),
    ):
        if value is not None:
            found[f"lora_foundry.{name}"] = f"{value:.4f}"
    return found


def fingerprint_of(run: Run, training_set: TrainingSet, lora: TrainedLora, model: str) -> str:
    """Of everything that decides the figures; the threshold for publishing is none of it."""
    recipe = run.recipe
    return fingerprint(
        "evaluate-4",
        model,
        recipe.model,
        recipe.shots,
        recipe.generate.deciding("pictures"),
        recipe.evaluate.deciding("scores"),
        recipe.publish.deciding("scores"),
        recipe.curate.min_contrast,
        recipe.curate.min_sharpness,
        recipe.seed,
        run.character,
        # What tells the traits of a reference image.
        recipe.caption.look if run.character.reference_image is not None else (),
        lora.sha256,
        [each.sha256 for each in lora.saved],
        [(picture.name, readable_hash(picture.path)) for picture in training_set.pictures],
    )


def is_whole(paths: RunPaths, result: Evaluation) -> bool:
    lora = paths.chosen_lora
    measured = lora.is_file() and file_hash(lora) == result.lora_sha256
    return measured and paths.report.is_file() and paths.before_after.is_file()


def note_of(run: Run, tagger: Tagger | None, traits: Sequence[Trait]) -> str:
    """Why scores are missing, in words for the report; empty where none is."""
    if run.recipe.evaluate.subject == "style":
        return (
            "A style is judged by how far the likeness goes from what the base draws (0) to your own pictures (1)."
            + ("" if tagger else " Adherence was not measured: the recipe names no instrument for it.")
        )
    if tagger is None:
        return (
            "Identity and adherence were not measured: the recipe names no instrument that reads traits "
            "(model.tagger = none)."
        )
    if not run.character.description and not traits:
        return (
            "There is no description to compare with, so identity is the likeness to the training pictures, as a "
            "share of what they reach among themselves."
        )
    if not traits:
        return "Identity was not measured: the description names no trait that the instrument knows."
    return ""


def detail_of(result: Evaluation, row: ScoreRow) -> str:
    found = result.identity_of(row)
    return "" if found is None else f"{result.scores.measure} {found:.2f}"
