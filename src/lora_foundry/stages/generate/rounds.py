"""One round before the set itself, after The Chosen One (arXiv 2311.10093). A description leaves much of a character
open, so forty pictures of it show forty people who look alike. A round draws a smaller set and keeps its most cohesive
pictures; from these a short LoRA is trained with which the next round draws, or the description is completed with what
they agree on: a base obeys a full description better than a half one. The loop over the rounds stands in `pipeline`."""

from __future__ import annotations

from pathlib import Path
from time import perf_counter

from lora_foundry.domain.captions import open_features
from lora_foundry.domain.dataset import PictureRecord, Round
from lora_foundry.domain.picture_plan import PicturePlan
from lora_foundry.domain.run import ProgressEvent, Run, fingerprint
from lora_foundry.errors import InputError
from lora_foundry.files.hashing import file_hash
from lora_foundry.files.images import load_picture
from lora_foundry.files.paths import RoundPaths, RunPaths
from lora_foundry.files.storage import make_folder, read_model, remove_leftovers, write_model
from lora_foundry.identity import Core, find_core, mean_distance
from lora_foundry.ports import Embedder, FloatArray, Ports, ProgressCallback, TrainingImage, TrainingJob
from lora_foundry.stages._shared.captions import compose
from lora_foundry.stages._shared.drawing import (
    GenerationContext,
    ShotAttempt,
    in_batches,
    load_made,
    make_pictures,
    record_of,
)

_FEWEST = 4  # pictures that a short LoRA is trained on


def run_round(run: Run, ports: Ports, context: GenerationContext, progress: ProgressCallback) -> Round:
    """Draws the round that comes next, keeps its core, and trains on it unless the pictures are no closer than those
    of the round before. A round that is done is read from its folder.

    Raises InputError where the recipe names no instrument that could tell, and what generator and trainer raise.
    """
    embedder = _embedder(run, ports)
    started, number = perf_counter(), len(context.rounds) + 1
    place = RunPaths(run.dataset_dir, run.character.slug).round(number)
    asked = run.recipe.generate
    plan = context.plan(run, number, min(asked.round_images or asked.images, asked.images))
    stamp = fingerprint("round-2", plan.fingerprint(), run.recipe.caption, run.recipe.train, run.recipe.model)
    finished = read_model(place.result, Round)
    if finished is not None and finished.fingerprint == stamp and _is_there(finished, place):
        return finished
    _draw(context, plan, place, number, progress)
    images = [load_made(place.image(index), "generate") for index in range(len(plan.shots))]
    vectors = embedder.embed(images)
    core = _core(vectors, run.recipe.generate.round_keep)
    distance = mean_distance(vectors)
    completed = _complete(run, ports, plan, place, core) if run.recipe.generate.complete_description else ()
    closer = not context.rounds or distance < context.rounds[-1].distance
    train = run.recipe.generate.round_steps > 0 and closer
    lora = _train(run, ports, plan, place, core, progress) if train else ""
    result = Round(
        number=number,
        fingerprint=stamp,
        model=plan.model,
        distance=distance,
        cohesion=round(core.cohesion, 4),
        kept=tuple(place.image(index).name for index in core.members),
        lora=lora,
        completed=completed,
        seconds=round(perf_counter() - started, 3),
    )
    write_model(place.result, result)
    return result


def _embedder(run: Run, ports: Ports) -> Embedder:
    """What tells which pictures are alike. Raises InputError where the recipe lacks what its rounds need."""
    if ports.embedder is None:
        raise InputError("generate.rounds needs an embedder; set model.embedder, or rounds to 1.")
    if run.recipe.generate.complete_description and not ports.captioners:
        raise InputError(
            "generate.complete_description needs an instrument that looks at pictures; set caption.look."
        )
    return ports.embedder


def _core(vectors: FloatArray, share: float) -> Core:
    return find_core(vectors, max(_FEWEST, round(share * len(vectors))))


def _complete(run: Run, ports: Ports, plan: PicturePlan, place: RoundPaths, core: Core) -> tuple[str, ...]:
    """What the core shows and the description so far leaves open."""
    records = [plan.record(index) for index in core.members]
    seen: list[list[str]] = [[] for _ in records]
    for tagger in ports.captioners:
        for tags, more in zip(seen, tagger.describe(run.character, records, place.images), strict=True):
            tags.extend(more)
    return open_features(plan.description, seen, run.recipe.caption.identity_share)


def _draw(
    context: GenerationContext,
    plan: PicturePlan,
    place: RoundPaths,
    number: int,
    progress: ProgressCallback,
) -> None:
    """Makes the pictures of a round that are not there yet."""
    remove_leftovers(make_folder(place.images))
    attempts = [ShotAttempt(index) for index in range(len(plan.shots))]
    missing = {each for each in attempts if record_of(place.image(each.shot), plan, each.shot) is None}
    missing |= {each for each in attempts if load_picture(place.image(each.shot)) is None}
    batches = [
        batch for batch in in_batches(attempts, plan.settings.batch_size) if missing.intersection(batch)
    ]
    done = len(attempts) - len(missing)

    def where(attempt: ShotAttempt) -> Path | None:
        return place.image(attempt.shot) if attempt in missing else None

    for _, path in make_pictures(context, plan, batches, where) if batches else ():
        done += 1
        message = f"round {number}"
        progress(
            ProgressEvent(
                stage="generate", done=done, total=len(attempts), unit="image", message=message, image=path
            )
        )


def _train(
    run: Run, ports: Ports, plan: PicturePlan, place: RoundPaths, core: Core, progress: ProgressCallback
) -> str:
    """Trains the short LoRA on the core, under captions as the caption stage would write them; its SHA-256."""
    recipe = run.recipe
    records = [plan.record(index) for index in core.members]
    images = [TrainingImage(place.images / record.file, _caption(run, record)) for record in records]
    ports.generator.close()  # a small GPU does not hold its base and the trainer's
    job = TrainingJob(
        images=tuple(images),
        settings=recipe.train.model_copy(
            update={
                "steps": recipe.generate.round_steps,
                "saves": 0,
                "save_every_epochs": 0,
                "save_every_minutes": 0.0,
            }
        ),
        trigger=run.character.trigger,
        output=place.lora,
        workdir=make_folder(place.training),
        metadata={},
    )

    def report(event: ProgressEvent) -> None:
        message = f"short LoRA of round {int(place.root.name)}"
        progress(event.model_copy(update={"stage": "generate", "message": message}))

    return ports.trainer.train(job, report).sha256


def _caption(run: Run, record: PictureRecord) -> str:
    """What the picture was asked to show; the character itself is what the trigger is to mean."""
    return compose(run.character, record, (), run.recipe.caption)


def _is_there(done: Round, place: RoundPaths) -> bool:
    return not done.lora or (place.lora.is_file() and file_hash(place.lora) == done.lora)


def lora_of(run: Run, done: Round) -> Path:
    """Where a round's short LoRA lies."""
    return RunPaths(run.dataset_dir, run.character.slug).round(done.number).lora
