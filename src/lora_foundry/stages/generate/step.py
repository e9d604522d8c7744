"""Makes the pictures of the plan, one file each, and goes on where it stopped: hours of work must survive a
crash.

A picture's own file says how it was made, so the folder itself is the record of what is done; the result
file only sums it up at the end. A file of a person's is never moved, renamed or written over."""

from __future__ import annotations

from pathlib import Path
from time import perf_counter

from lora_foundry.domain.dataset import GenerationMetadata
from lora_foundry.domain.picture_plan import PicturePlan
from lora_foundry.domain.run import ProgressEvent, Run, fingerprint
from lora_foundry.errors import InputError
from lora_foundry.files.images import load_picture, read_record
from lora_foundry.files.paths import RunPaths
from lora_foundry.files.storage import make_folder, move_file, read_model, remove_leftovers, write_model
from lora_foundry.files.training_set import list_set, move_picture, read_set
from lora_foundry.ports import Ports, ProgressCallback
from lora_foundry.stages._shared.drawing import (
    GenerationContext,
    ShotAttempt,
    in_batches,
    make_pictures,
    record_of,
    start_context,
)
from lora_foundry.stages._shared.reference import put_reference_in_set

_PNG_START = b"\x89PNG\r\n\x1a\n"


def run(
    run: Run, ports: Ports, progress: ProgressCallback, context: GenerationContext | None = None
) -> GenerationMetadata:
    """Makes what is missing and writes generation_metadata.json. `context`: what the rounds before have led to.

    Raises what the generator raises, StorageError, and InputError for a person's file where a picture must go.
    """
    started = perf_counter()
    paths = RunPaths(run.dataset_dir, run.character.slug)
    context = start_context(run, ports) if context is None else context
    plan = context.plan(run)
    total = len(plan.shots)
    finished = read_model(paths.generation_metadata, GenerationMetadata)
    known = frozenset() if finished is None else frozenset(picture.file for picture in finished.pictures)
    if finished is not None and finished.fingerprint != plan.fingerprint():
        finished = None
    for folder in (paths.root, paths.images):
        remove_leftovers(folder)
    _refuse_own_files(paths, plan, known)
    put_reference_in_set(paths, wanted=context.reference is not None)
    _set_aside_others(paths, plan, finished is not None, progress)
    done = {index for index in range(total) if _is_done(paths, plan, index, finished is not None)}
    if finished is not None and len(done) == total:
        return _under_present_names(paths, finished, run)

    progress(ProgressEvent(stage="generate", done=len(done), total=total, unit="image"))
    batches = in_batches([ShotAttempt(index) for index in range(total)], plan.settings.batch_size)
    unfinished = [batch for batch in batches if any(attempt.shot not in done for attempt in batch)]
    for attempt, path in make_pictures(
        context,
        plan,
        unfinished,
        lambda attempt: None if attempt.shot in done else paths.image(attempt.shot),
    ):
        done.add(attempt.shot)
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
        rounds=context.rounds,
        completed=context.completed,
        seconds=round(perf_counter() - started, 3),
    )
    write_model(paths.generation_metadata, result)
    return result


def take_own(run: Run, progress: ProgressCallback) -> GenerationMetadata:
    """The set where all pictures are a person's own: nothing is drawn. Pictures of an earlier plan are set aside.

    Raises InputError for a folder without pictures.
    """
    paths = RunPaths(run.dataset_dir, run.character.slug)
    remove_leftovers(make_folder(paths.images))
    aside = paths.previous_images()
    for picture in list_set(paths).pictures:
        if picture.generated or picture.reference:
            move_picture(paths, picture.path, aside / picture.path.name)
    present = read_set(paths)
    if not present.own and not any(each.crop and each.crop.by_hand for each in present.pictures):
        left = "; ".join(f"{each.name}: {each.reason}" for each in present.left_out[:3])
        raise InputError(
            f"There is no picture to train on in {paths.images}; put some there, or give a folder with --pictures."
            + (f" Left out: {left}." if left else "")
        )
    result = GenerationMetadata(
        character=run.character.name,
        trigger=run.character.trigger,
        description=run.character.description,
        recipe=run.recipe.name,
        seed=run.recipe.seed,
        model="",
        fingerprint=fingerprint("own pictures", run.recipe.dataset),
        pictures=(),
        seconds=0.0,
    )
    if read_model(paths.generation_metadata, GenerationMetadata) != result:
        write_model(paths.generation_metadata, result)
    count = len(present.own)
    progress(
        ProgressEvent(
            stage="generate",
            done=count,
            total=count,
            unit="image",
            message=f"{count} own pictures, none drawn",
        )
    )
    return result


def _refuse_own_files(paths: RunPaths, plan: PicturePlan, known: frozenset[str]) -> None:
    """Raises InputError for a person's file under a name that a picture of the plan needs. A damaged file of ours is
    none: it will be written over."""
    for index in range(len(plan.shots)):
        path = paths.image(index)
        if not path.exists() or read_record(path) is not None:
            continue
        damaged = load_picture(path) is None
        if damaged and (path.name in known or _begins_like_ours(path)):
            continue
        raise InputError(
            f"{path} was not made here, and its name is one that the pictures drawn for {plan.slug!r} get. Give your "
            "file another name, and it stays in the set beside them; nothing was changed."
        )


def _begins_like_ours(path: Path) -> bool:
    """Whether a damaged file is the beginning of a PNG, as a full disk leaves one."""
    return _PNG_START.startswith(path.read_bytes()[: len(_PNG_START)])


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
    """Moves pictures that were made here for another plan out of the way, with their captions and masks; nothing is
    deleted.

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
        move_picture(paths, path, aside / path.name)
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
    """Whether a picture in images/ was made here, and not for this plan."""
    record = read_record(path)
    if record is None:
        return False
    number = path.stem.rsplit("_", 1)[1]
    if not number.isdecimal():
        return False  # a file of the user's, under a name that we never write
    index = int(number) - 1
    if not 0 <= index < len(plan.shots) or path != paths.image(index):
        return True
    if load_picture(path) is None:
        return False
    return not (_is_whole(path, plan) and plan.fits(record, index))


def _under_present_names(paths: RunPaths, finished: GenerationMetadata, run: Run) -> GenerationMetadata:
    """The finished result; written anew where only names have changed, which are in no picture."""
    result = finished.model_copy(
        update={"character": run.character.name, "trigger": run.character.trigger, "recipe": run.recipe.name}
    )
    if result != finished:
        write_model(paths.generation_metadata, result)
    return result
