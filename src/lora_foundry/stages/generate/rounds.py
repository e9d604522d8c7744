"""Rounds before the last gallery, after The Chosen One (arXiv 2311.10093): a description leaves much of a character
open, so forty pictures of it show forty cousins. Each round keeps the most cohesive ones of a gallery and trains a
short LoRA on them, with which the next gallery is drawn, until the pictures do not move closer together any more. Or it
puts into words what they settle (`generate.settle`): a base obeys a full description better than a half one."""

from __future__ import annotations

from pathlib import Path
from time import perf_counter

from PIL import Image

from lora_foundry.domain.captions import open_features
from lora_foundry.domain.dataset import PictureRecord, Round
from lora_foundry.domain.lora import LoraUse
from lora_foundry.domain.picture_plan import PicturePlan
from lora_foundry.domain.run import ProgressEvent, Run, fingerprint
from lora_foundry.errors import InputError, StageError
from lora_foundry.files.images import file_hash, load_picture
from lora_foundry.files.paths import RoundPaths, RunPaths
from lora_foundry.files.storage import make_folder, read_model, remove_leftovers, write_model
from lora_foundry.identity import Core, find_core, mean_distance
from lora_foundry.ports import Embedder, FloatArray, Ports, ProgressCallback, TrainingImage, TrainingJob
from lora_foundry.stages.caption.step import compose
from lora_foundry.stages.drawing import Brush, Slot, make_pictures, record_of, slices, take_brush

_FEWEST = 4  # pictures that a short LoRA is trained on


def last_brush(run: Run, ports: Ports, progress: ProgressCallback) -> Brush:
    """What the last gallery is drawn with: after all rounds that the recipe asks for and that still help.

    Rounds that are done are read from their folders. Raises InputError where the recipe names no embedder, and what
    generator and trainer raise.
    """
    brush, paths = take_brush(run, ports), RunPaths(run.dataset_dir, run.character.slug)
    wanted = run.recipe.generate.rounds - 1
    if not wanted:
        return brush
    if ports.embedder is None:
        raise InputError("generate.rounds needs an embedder; set model.embedder, or rounds to 1.")
    if run.recipe.generate.settle and not ports.lookers:
        raise InputError("generate.settle needs an instrument that looks at pictures; set caption.look.")
    plain = brush
    for number in range(1, wanted + 1):
        place = paths.round(number)
        done = _one_round(run, ports, ports.embedder, brush, place, progress)
        brush = brush._replace(rounds=(*brush.rounds, done), settled=(*brush.settled, *done.settled))
        if done.lora:
            brush = brush._replace(
                lora=LoraUse(path=place.lora),
                notes=f"{plain.notes} + round {number} LoRA {done.lora[:16]}",
                trigger=run.character.trigger,
            )
        elif not done.settled:
            break
    return brush


def _one_round(
    run: Run, ports: Ports, embedder: Embedder, brush: Brush, place: RoundPaths, progress: ProgressCallback
) -> Round:
    """Draws a gallery, keeps its core and trains on it, unless the gallery is no closer than the one before."""
    started, number = perf_counter(), len(brush.rounds) + 1
    plan = brush.plan(run, number, run.recipe.generate.round_images)
    stamp = fingerprint("round-1", plan.fingerprint(), run.recipe.caption, run.recipe.train, run.recipe.model)
    finished = read_model(place.result, Round)
    if finished is not None and finished.fingerprint == stamp and _is_there(finished, place):
        return finished
    _draw(brush, plan, place, number, progress)
    images = [_load(place.image(index)) for index in range(len(plan.shots))]
    vectors = embedder.embed(images)
    core = _core(vectors, run.recipe.generate.round_keep)
    distance = mean_distance(vectors)
    settled = _settle(run, ports, plan, place, core) if run.recipe.generate.settle else ()
    closer = not brush.rounds or distance < brush.rounds[-1].distance
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
        settled=settled,
        seconds=round(perf_counter() - started, 3),
    )
    write_model(place.result, result)
    return result


def _core(vectors: FloatArray, share: float) -> Core:
    return find_core(vectors, max(_FEWEST, round(share * len(vectors))))


def _settle(run: Run, ports: Ports, plan: PicturePlan, place: RoundPaths, core: Core) -> tuple[str, ...]:
    """What the core shows and the description so far leaves open."""
    records = [plan.record(index) for index in core.members]
    seen: list[list[str]] = [[] for _ in records]
    for looker in ports.lookers:
        for tags, more in zip(seen, looker.describe(run.character, records, place.images), strict=True):
            tags.extend(more)
    return open_features(plan.description, seen, run.recipe.caption.identity_share)


def _draw(
    brush: Brush, plan: PicturePlan, place: RoundPaths, number: int, progress: ProgressCallback
) -> None:
    """Makes the pictures of a gallery that are not there yet."""
    remove_leftovers(make_folder(place.images))
    slots = [Slot(index) for index in range(len(plan.shots))]
    missing = {slot for slot in slots if record_of(place.image(slot.shot), plan, slot.shot) is None}
    missing |= {slot for slot in slots if load_picture(place.image(slot.shot)) is None}
    batches = [batch for batch in slices(slots, plan.settings.batch_size) if missing.intersection(batch)]
    done = len(slots) - len(missing)

    def where(slot: Slot) -> Path | None:
        return place.image(slot.shot) if slot in missing else None

    for _, path in make_pictures(brush, plan, batches, where) if batches else ():
        done += 1
        message = f"round {number}"
        progress(
            ProgressEvent(
                stage="generate", done=done, total=len(slots), unit="image", message=message, image=path
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

    def told(event: ProgressEvent) -> None:
        message = f"short LoRA of round {int(place.root.name)}"
        progress(event.model_copy(update={"stage": "generate", "message": message}))

    return ports.trainer.train(job, told).sha256


def _caption(run: Run, record: PictureRecord) -> str:
    """What the picture was asked to show; the character itself is what the trigger is to mean."""
    return compose(run.character, record, (), run.recipe.caption)


def _is_there(done: Round, place: RoundPaths) -> bool:
    return not done.lora or (place.lora.is_file() and file_hash(place.lora) == done.lora)


def _load(path: Path) -> Image.Image:
    image = load_picture(path)
    if image is None:
        raise StageError(f"The picture {path} is missing or damaged; run the same command again.")
    return image
