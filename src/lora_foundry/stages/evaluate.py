"""Measures what the LoRA learned: the same held-out prompts and seeds without it and with it, where the
trigger word alone has to bring the character back. Pictures of an unchanged base and LoRA are taken from
the folder again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from time import perf_counter

from PIL import Image

from lora_foundry.domain.dataset import GenerationMetadata, PictureRecord
from lora_foundry.domain.evaluation import Evaluation, ScoreRow, Side
from lora_foundry.domain.exclusion import Exclusions
from lora_foundry.domain.held_out import exam, held_out_shots
from lora_foundry.domain.lora import LoraUse, TrainedLora
from lora_foundry.domain.run import ProgressEvent, Run, fingerprint
from lora_foundry.errors import BackendError, StageError
from lora_foundry.paths import RunPaths
from lora_foundry.pictures import load_picture, read_record, save_picture
from lora_foundry.ports import Embedder, FloatArray, Generator, Ports, ProgressCallback, Tagger, Trait
from lora_foundry.stages.before_after import draw_before_after
from lora_foundry.stages.report import write_report
from lora_foundry.stages.scoring import Judge, score, self_similarity
from lora_foundry.storage import (
    make_folder,
    read_model,
    remove_file,
    remove_leftovers,
    require_model,
    write_model,
)

SIDES: tuple[Side, ...] = ("before", "after", "leak")
_MESSAGES = {"before": "without the LoRA", "after": "with the LoRA", "leak": "without the trigger"}
_NO_INFLUENCE = {"backend", "images", "batch_size"}


def run(run: Run, ports: Ports, progress: ProgressCallback) -> Evaluation:
    """Makes the pictures that are not there yet, scores them, draws the grid and writes the report.

    Raises VerificationError for a LoRA that the base does not take, and what the generator raises.
    """
    started = perf_counter()
    paths = RunPaths(run.dataset_dir, run.character.slug)
    lora = require_model(paths.training_result, TrainedLora, "train")
    training = _trained_on(paths)
    model = ports.generator.model
    made_from = _fingerprint(run, training, lora, model)
    earlier = read_model(paths.evaluation_result, Evaluation)
    if earlier is not None and earlier.fingerprint == made_from and _is_whole(paths):
        return earlier
    trained = [picture.shot for picture in training.pictures]
    shots = held_out_shots(run.recipe.shots, run.recipe.evaluate.prompts, run.recipe.seed, trained)
    use = LoraUse(path=paths.trained_lora, strength=run.recipe.evaluate.strength)
    with_lora = f"{model} + LoRA {lora.sha256[:16]} at {use.strength:g}"
    measured = SIDES if ports.tagger else SIDES[:2]  # without an instrument nobody could tell what leaks
    sides: dict[Side, list[PictureRecord]] = {
        side: exam(run.character, run.recipe, shots, model if side == "before" else with_lora, side)
        for side in measured
    }
    _make(run, paths, ports.generator, sides, use, progress)
    images = {
        side: [_load(paths.evaluation_pictures(side) / record.file, "evaluate") for record in records]
        for side, records in sides.items()
    }
    traits = ports.tagger.understand(run.character.tags) if ports.tagger else []
    own = _own_embeddings(paths, training, ports.embedder)
    judge = Judge(traits, ports.tagger, ports.embedder, own)
    rows = {
        side: score([f"{side}/{record.file}" for record in records], records, images[side], judge)
        for side, records in sides.items()
    }
    result = Evaluation(
        character=run.character.name,
        trigger=run.character.trigger,
        model=model,
        before=rows["before"],
        after=rows["after"],
        leak=rows.get("leak", ScoreRow()),
        strength=use.strength,
        lora_sha256=lora.sha256,
        traits={trait.attribute: trait.value for trait in traits},
        shots=len(shots),
        held_out=len(set(shots) - set(trained)),
        self_similarity=None if own is None else self_similarity(own),
        note=_note(ports.tagger, traits),
        fingerprint=made_from,
        seconds=round(perf_counter() - started, 2),
    )
    draw_before_after(
        paths.before_after,
        run.character,
        sides["before"],
        images["before"],
        images["after"],
        details=(_detail(result.before), _detail(result.after)),
    )
    write_report(run, paths, result)
    write_model(paths.evaluation_result, result)
    return result


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
        "evaluate-1",
        model,
        recipe.model,
        recipe.shots,
        recipe.generate.model_dump(mode="json", exclude=_NO_INFLUENCE),
        recipe.evaluate.model_dump(mode="json", exclude={"min_identity"}),
        recipe.seed,
        run.character,
        lora.sha256,
        [picture.sha256 for picture in training.pictures],
    )


def _is_whole(paths: RunPaths) -> bool:
    return paths.report.is_file() and paths.before_after.is_file()


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


def _detail(row: ScoreRow) -> str:
    return "" if row.identity is None else f"identity {row.identity:.2f}"


def _make(
    run: Run,
    paths: RunPaths,
    generator: Generator,
    sides: dict[Side, list[PictureRecord]],
    lora: LoraUse,
    progress: ProgressCallback,
) -> None:
    """Makes every picture that is not in its folder, and takes away those that nothing asks for any more."""
    total = sum(len(records) for records in sides.values())
    done = 0
    for side, records in sides.items():
        folder = make_folder(paths.evaluation_pictures(side))
        remove_leftovers(folder)
        wanted = {record.file for record in records}
        for stale in folder.glob("*.png"):
            if stale.name not in wanted:
                remove_file(stale)
        missing = {
            record.request.key: record for record in records if not _is_there(folder / record.file, record)
        }
        done += len(records) - len(missing)
        batches = [
            [record.request for record in batch]
            for batch in _slices(records, run.recipe.generate.batch_size)
            if any(record.request.key in missing for record in batch)
        ]
        for made in generator.generate(batches, None if side == "before" else lora) if batches else ():
            record = missing.pop(made.request.key, None)
            if record is None:
                continue  # it was there before; it was made again only because a batch is made as a whole
            save_picture(folder / record.file, made.image, record)
            done += 1
            progress(
                ProgressEvent(
                    stage="evaluate",
                    done=done,
                    total=total,
                    unit="image",
                    message=_MESSAGES[side],
                    image=folder / record.file,
                )
            )
        if missing:
            raise BackendError(
                f"The generator left out {len(missing)} evaluation pictures; run the same command again."
            )


def _slices(records: Sequence[PictureRecord], size: int) -> list[Sequence[PictureRecord]]:
    return [records[start : start + size] for start in range(0, len(records), size)]


def _is_there(path: Path, record: PictureRecord) -> bool:
    return read_record(path) == record and load_picture(path) is not None


def _load(path: Path, made_by: str) -> Image.Image:
    image = load_picture(path)
    if image is None:
        raise StageError(f"The picture {path} is missing or damaged; run the '{made_by}' stage again.")
    return image


def _own_embeddings(
    paths: RunPaths, training: GenerationMetadata, embedder: Embedder | None
) -> FloatArray | None:
    """The training set as the embedder sees it."""
    if embedder is None:
        return None
    return embedder.embed([_load(paths.images / picture.file, "generate") for picture in training.pictures])
