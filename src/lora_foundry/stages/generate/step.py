"""Makes the pictures of the plan, one file each, and goes on where it stopped: hours of work must survive a
crash.

A picture's own file says how it was made, so the folder itself is the record of what is done; the result
file only sums it up at the end."""

from __future__ import annotations

from pathlib import Path
from time import perf_counter

from lora_foundry.domain.dataset import GenerationMetadata
from lora_foundry.domain.picture_plan import PicturePlan
from lora_foundry.domain.run import ProgressEvent, Run
from lora_foundry.files.images import load_picture, read_record
from lora_foundry.files.paths import RunPaths
from lora_foundry.files.storage import make_folder, move_file, read_model, remove_leftovers, write_model
from lora_foundry.ports import Ports, ProgressCallback
from lora_foundry.stages.drawing import Slot, make_pictures, record_of, slices
from lora_foundry.stages.generate.rounds import last_brush


def run(run: Run, ports: Ports, progress: ProgressCallback) -> GenerationMetadata:
    """Makes what is missing and writes generation_metadata.json. Raises what the generator raises, and
    StorageError."""
    started = perf_counter()
    paths = RunPaths(run.dataset_dir, run.character.slug)
    brush = last_brush(run, ports, progress)
    plan = brush.plan(run)
    total = len(plan.shots)
    finished = read_model(paths.generation_metadata, GenerationMetadata)
    if finished is not None and finished.fingerprint != plan.fingerprint():
        finished = None
    for folder in (paths.root, paths.images):
        remove_leftovers(folder)
    _set_aside_others(paths, plan, finished is not None, progress)
    done = {index for index in range(total) if _is_done(paths, plan, index, finished is not None)}
    if finished is not None and len(done) == total:
        return _under_present_names(paths, finished, run)

    progress(ProgressEvent(stage="generate", done=len(done), total=total, unit="image"))
    batches = slices([Slot(index) for index in range(total)], plan.settings.batch_size)
    unfinished = [batch for batch in batches if any(slot.shot not in done for slot in batch)]
    for slot, path in make_pictures(
        brush,
        plan,
        unfinished,
        lambda slot: None if slot.shot in done else paths.image(slot.shot),
    ):
        done.add(slot.shot)
        progress(ProgressEvent(stage="generate", done=len(done), total=total, unit="image", image=path))

    before = {} if finished is None else {picture.file: picture for picture in finished.pictures}
    result = GenerationMetadata(
        character=run.character.name,
        trigger=run.character.trigger,
        description=run.character.description,
        recipe=run.recipe.name,
        seed=run.recipe.seed,
        model=plan.model,
        fingerprint=plan.fingerprint(),
        pictures=tuple(
            record_of(paths.image(index), plan, index)
            or before.get(paths.image(index).name, plan.record(index))
            for index in range(total)
        ),
        rounds=brush.rounds,
        seconds=round(perf_counter() - started, 3),
    )
    write_model(paths.generation_metadata, result)
    return result


def _is_done(paths: RunPaths, plan: PicturePlan, index: int, finished: bool) -> bool:
    """Whether shot `index` has its picture: in images/, whichever attempt; or among those that curation took
    out, when it was stopped before it put another one in."""
    image = paths.image(index)
    if _is_whole(image, plan) and plan.fits(read_record(image), index):
        return True
    return finished and any(
        paths.attempt(folder, index, 0).exists() for folder in (paths.rejected, paths.candidates)
    )


def _is_whole(path: Path, plan: PicturePlan) -> bool:
    picture = load_picture(path)
    return picture is not None and picture.size == (plan.settings.width, plan.settings.height)


def _set_aside_others(paths: RunPaths, plan: PicturePlan, finished: bool, progress: ProgressCallback) -> None:
    """Moves pictures that this plan did not ask for out of the way, with their captions; nothing is deleted.

    A damaged file at a planned place is no picture any more and will be written over.
    """
    make_folder(paths.images)
    others = [
        path for path in sorted(paths.images.glob(f"{paths.slug}_*.png")) if _is_other(path, paths, plan)
    ]
    curated: list[Path] = []
    if not finished:
        curated = [
            path for folder in (paths.rejected, paths.candidates) for path in sorted(folder.glob("*.png"))
        ]
    if not others and not curated:
        return
    aside = paths.previous_images()
    for path in others:
        if (caption := paths.caption(path)).exists():
            move_file(caption, aside / caption.name)
        move_file(path, aside / path.name)
    for path in curated:
        move_file(path, aside / path.parent.name / path.name)
    if others:
        pictures = f"{len(others)} older pictures" if len(others) > 1 else "1 older picture"
        progress(
            ProgressEvent(
                stage="generate",
                done=0,
                total=len(plan.shots),
                unit="image",
                message=f"{pictures} of another description, recipe or size moved to {aside.name}",
            )
        )


def _is_other(path: Path, paths: RunPaths, plan: PicturePlan) -> bool:
    """Whether a picture file in images/ is in the way: not of this plan, and not merely damaged."""
    number = path.stem.rsplit("_", 1)[1]
    if not number.isdecimal():
        return False  # a file of the user's, under a name that we never write
    index = int(number) - 1
    if not 0 <= index < len(plan.shots) or path != paths.image(index):
        return True
    if load_picture(path) is None:
        return False
    return not (_is_whole(path, plan) and plan.fits(read_record(path), index))


def _under_present_names(paths: RunPaths, finished: GenerationMetadata, run: Run) -> GenerationMetadata:
    """The finished result; written anew where only names have changed, which are in no picture."""
    result = finished.model_copy(
        update={"character": run.character.name, "trigger": run.character.trigger, "recipe": run.recipe.name}
    )
    if result != finished:
        write_model(paths.generation_metadata, result)
    return result
