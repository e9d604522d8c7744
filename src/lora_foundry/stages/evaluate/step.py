"""Measures what the LoRA learned: the same held-out prompts and seeds without it and with it, where the
trigger word alone has to bring the character back. Pictures of an unchanged base and LoRA are taken from
the folder again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from time import perf_counter
from typing import NamedTuple

from PIL import Image

from lora_foundry.domain.dataset import GenerationMetadata
from lora_foundry.domain.evaluation import Candidate, Evaluation, ScoreRow, Side
from lora_foundry.domain.exclusion import Exclusions
from lora_foundry.domain.held_out import exam, held_out_shots
from lora_foundry.domain.lora import TrainedLora
from lora_foundry.domain.run import ProgressEvent, Run, fingerprint
from lora_foundry.domain.shots import Shot
from lora_foundry.files.images import file_hash
from lora_foundry.files.paths import RunPaths
from lora_foundry.files.storage import read_model, require_model, write_model
from lora_foundry.measures import thumbnail
from lora_foundry.ports import Ports, ProgressCallback, Tagger, Trait
from lora_foundry.stages.evaluate.before_after import draw_before_after
from lora_foundry.stages.evaluate.choosing import (
    CLEARLY,
    Choice,
    Yardstick,
    choices,
    clearly_best_of,
    demanded,
    overfit_from,
    rate,
    record,
    requests_of,
)
from lora_foundry.stages.evaluate.exams import Examiner, load
from lora_foundry.stages.evaluate.report import write_report
from lora_foundry.stages.scoring import Judge, look_at, score, self_similarity
from lora_foundry.stages.train import step as train

_NO_INFLUENCE = {"backend", "images", "batch_size"}
_JUDGED_LATER = {"min_identity", "more_training"}


def run(run: Run, ports: Ports, progress: ProgressCallback) -> Evaluation:
    """Chooses a checkpoint, examines it and writes the report; trains longer where the recipe asks for more identity
    than was found and allows it.

    Raises VerificationError for a LoRA that the base does not take, and what generator and trainer raise.
    """
    section = run.recipe.evaluate
    while True:
        result = _evaluate(run, ports, progress)
        found = result.identity_of(result.after)
        if found is None or found >= section.min_identity or not section.more_training:
            return result
        if not train.ask_for_more(run, ports, section.more_training):
            return result
        message = f"identity {found:.2f} < {section.min_identity:g}: training longer"
        progress(ProgressEvent(stage="evaluate", done=0, total=1, message=message))
        ports.generator.close()  # a small GPU does not hold its base and the trainer's
        train.run(run, ports, lambda event: progress(event.model_copy(update={"stage": "evaluate"})))


def _evaluate(run: Run, ports: Ports, progress: ProgressCallback) -> Evaluation:
    """One trained LoRA: makes the pictures that are not there yet, scores them, draws the grid, writes the report."""
    started = perf_counter()
    paths = RunPaths(run.dataset_dir, run.character.slug)
    lora = require_model(paths.training_result, TrainedLora, "train")
    training = _trained_on(paths)
    model = ports.generator.model
    made_from = _fingerprint(run, training, lora, model)
    earlier = read_model(paths.evaluation_result, Evaluation)
    if earlier is not None and earlier.fingerprint == made_from and _is_whole(paths, earlier):
        return earlier
    trained = [picture.shot for picture in training.pictures]
    shots = held_out_shots(run.recipe.shots, run.recipe.evaluate.prompts, run.recipe.seed, trained)
    examiner = Examiner(ports.generator, run.recipe.generate.batch_size, progress)
    judge = _judge(run, ports, paths, training)
    own = None if judge.own is None else self_similarity(judge.own)
    options = choices(lora, paths, run.recipe.evaluate)
    sitting = Sitting(run, paths, examiner, judge, model, own)
    best, candidates = sitting.choose(options, [*trained, *shots])
    rows, drawn = sitting.examine(shots, best, options[-1])
    best = sitting.run_off(rows, best, options[-1])
    after: Side = "last" if best == options[-1] and "last" in rows else "after"
    result = Evaluation(
        character=run.character.name,
        trigger=run.character.trigger,
        model=model,
        before=rows["before"],
        after=rows[after],
        leak=rows.get("leak", ScoreRow()),
        strength=best.use.strength,
        step=best.step,
        candidates=candidates,
        overfit_from=overfit_from(candidates, best.step, best.use.strength),
        lora_sha256="",
        trained_sha256=lora.sha256,
        traits={trait.attribute: trait.value for trait in judge.traits},
        shots=len(shots),
        held_out=len(set(shots) - set(trained)),
        self_similarity=own,
        note=_note(ports.tagger, judge.traits),
        fingerprint=made_from,
        seconds=round(perf_counter() - started, 2),
    )
    digest = record(best.use.path, paths.chosen_lora, _notes(result))
    result = result.model_copy(update={"lora_sha256": digest})
    details = (_detail(result, result.before), _detail(result, result.after))
    records = exam(run.character, run.recipe, shots, model, "before")
    draw_before_after(paths.before_after, run.character, records, drawn["before"], drawn[after], details)
    write_report(run, paths, result)
    write_model(paths.evaluation_result, result)
    return result


class Sitting(NamedTuple):
    """One evaluation's hands and eyes."""

    run: Run
    paths: RunPaths
    examiner: Examiner
    judge: Judge
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
        records = exam(run.character, run.recipe, shots, self.model, "choice")
        folder = self.paths.evaluation_pictures("choice")
        self.examiner.total = len(records) * (len(options) + 1)
        base = self.examiner.draw(folder / "base", records, None, "checkpoints: the base")
        variety = look_at(base, self.judge).get("variety")
        rated = []
        for option in options:
            asked = requests_of(records, _with(self.model, option))
            images = self.examiner.draw(
                folder / option.name, asked, option.use, f"checkpoints: {option.name}"
            )
            files = [f"choice/{option.name}/{each.file}" for each in asked]
            row = score(files, asked, images, self.judge)
            rated.append((option, rate(option, row, Yardstick(self.own, variety, section))))
        return named or clearly_best_of(rated), tuple(candidate for _, candidate in rated)

    def examine(
        self, shots: Sequence[Shot], best: Choice, last: Choice
    ) -> tuple[dict[Side, ScoreRow], dict[Side, list[Image.Image]]]:
        """The whole exam: the base, the chosen checkpoint, it without the trigger, and the last one for comparison."""
        sides: dict[Side, Choice | None] = {"before": None, "after": best}
        if self.judge.tagger or self.judge.embedder:  # without an instrument nobody could tell what leaks
            sides["leak"] = best
        if best != last:
            sides["last"] = last
        character, recipe = self.run.character, self.run.recipe
        records = {
            side: exam(character, recipe, shots, _with(self.model, choice), side)
            for side, choice in sides.items()
        }
        self.examiner.total = self.examiner.done + sum(map(len, records.values()))
        rows, drawn = dict[Side, ScoreRow](), dict[Side, list[Image.Image]]()
        for side, choice in sides.items():
            folder, use = self.paths.evaluation_pictures(side), choice.use if choice else None
            drawn[side] = self.examiner.draw(folder, records[side], use, _MESSAGES[side])
            files = [f"{side}/{each.file}" for each in records[side]]
            rows[side] = score(files, records[side], drawn[side], self.judge)
        return rows, drawn

    def run_off(self, rows: Mapping[Side, ScoreRow], best: Choice, last: Choice) -> Choice:
        """The chosen checkpoint where it did clearly better in the exam than the last one, else that."""
        if "last" not in rows or self.run.recipe.evaluate.step:
            return best
        yardstick = Yardstick(self.own, rows["before"].variety, self.run.recipe.evaluate)
        kept, other = rate(best, rows["after"], yardstick), rate(last, rows["last"], yardstick)
        return best if kept.score > other.score + CLEARLY else last


_MESSAGES: dict[Side, str] = {
    "before": "without the LoRA",
    "after": "with the LoRA",
    "leak": "without the trigger",
    "last": "with the last checkpoint",
}


def _with(model: str, choice: Choice | None) -> str:
    """What a picture's record says it was made with."""
    return model if choice is None else f"{model} + LoRA {choice.sha256[:16]} at {choice.use.strength:g}"


def _judge(run: Run, ports: Ports, paths: RunPaths, training: GenerationMetadata) -> Judge:
    """The instruments, and the training set as they see it."""
    images = [load(paths.images / picture.file, "generate") for picture in training.pictures]
    rules = run.recipe.curate
    return Judge(
        traits=ports.tagger.understand(run.character.tags) if ports.tagger else [],
        tagger=ports.tagger,
        embedder=ports.embedder,
        own=ports.embedder.embed(images) if ports.embedder else None,
        thumbnails=[thumbnail(image) for image in images],
        least_contrast=rules.min_contrast,
        least_sharpness=rules.min_sharpness / 2,
    )


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


def _trained_on(paths: RunPaths) -> GenerationMetadata:
    """The set without the pictures that a person has thrown out. Raises StageError."""
    whole = require_model(paths.generation_metadata, GenerationMetadata, "generate")
    out = read_model(paths.exclusions, Exclusions) or Exclusions()
    kept = tuple(each for each in whole.pictures if not out.covers(each.file, each.sha256))
    return whole.model_copy(update={"pictures": kept})


def _fingerprint(run: Run, training: GenerationMetadata, lora: TrainedLora, model: str) -> str:
    """Of everything that decides the figures; the threshold for publishing is none of it."""
    recipe = run.recipe
    return fingerprint(
        "evaluate-2",
        model,
        recipe.model,
        recipe.shots,
        recipe.generate.model_dump(mode="json", exclude=_NO_INFLUENCE),
        recipe.evaluate.model_dump(mode="json", exclude=_JUDGED_LATER),
        recipe.curate.min_contrast,
        recipe.curate.min_sharpness,
        recipe.seed,
        run.character,
        lora.sha256,
        [each.sha256 for each in lora.saved],
        [picture.sha256 for picture in training.pictures],
    )


def _is_whole(paths: RunPaths, result: Evaluation) -> bool:
    lora = paths.chosen_lora
    measured = lora.is_file() and file_hash(lora) == result.lora_sha256
    return measured and paths.report.is_file() and paths.before_after.is_file()


def _note(tagger: Tagger | None, traits: Sequence[Trait]) -> str:
    """Why scores are missing, in words for the report; empty where none is."""
    if tagger is None:
        return (
            "Identity and adherence were not measured: the recipe names no instrument that reads traits "
            "(model.tagger = none)."
        )
    if not traits:
        return "Identity was not measured: the description names no trait that the instrument knows."
    return ""


def _detail(result: Evaluation, row: ScoreRow) -> str:
    found = result.identity_of(row)
    return "" if found is None else f"identity {found:.2f}"
