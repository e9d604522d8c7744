"""Regularisation pictures: what the base draws for the set's own kind of prompt when nobody is named. Trained beside
the set under captions without the trigger, they keep the character where the trigger is, and the base as it was."""

from __future__ import annotations

from pathlib import Path

from lora_foundry.domain.picture_plan import PicturePlan
from lora_foundry.domain.run import ProgressEvent, Run
from lora_foundry.domain.shots import plan_shots
from lora_foundry.errors import InputError
from lora_foundry.files.images import load_picture, read_record
from lora_foundry.files.paths import RunPaths
from lora_foundry.files.storage import make_folder, remove_leftovers
from lora_foundry.files.training_set import pictures_in
from lora_foundry.ports import Ports, ProgressCallback, TrainingImage
from lora_foundry.stages._shared.captions import written_caption
from lora_foundry.stages._shared.drawing import GenerationContext, ShotAttempt, in_batches, make_pictures

_SEED_SHIFT = 1_000_003  # other pictures than the set's, from the same seed


def regularisation_pictures(run: Run, ports: Ports, progress: ProgressCallback) -> tuple[TrainingImage, ...]:
    """The pictures of the folder that the recipe names, or as many drawn ones as it asks for; those that are there
    already are kept. Raises InputError, and what the generator raises."""
    settings = run.recipe.train
    if settings.regularisation_folder:
        return _from_folder(Path(settings.regularisation_folder).expanduser(), settings.repeats)
    if settings.regularisation == 0:
        return ()
    folder = make_folder(RunPaths(run.dataset_dir, run.character.slug).regularisation)
    remove_leftovers(folder)
    plan = _plan(run, ports.generator.model)
    total = len(plan.shots)
    missing = {index for index in range(total) if not _is_there(folder, plan, index)}
    batches = [
        batch
        for batch in in_batches([ShotAttempt(index) for index in range(total)], plan.settings.batch_size)
        if any(attempt.shot in missing for attempt in batch)
    ]
    done = total - len(missing)
    for _, path in make_pictures(
        GenerationContext(ports.generator),
        plan,
        batches,
        lambda attempt: folder / plan.record(attempt.shot).file if attempt.shot in missing else None,
    ):
        done += 1
        progress(
            ProgressEvent(
                stage="train",
                done=0,
                total=0,
                message=f"regularisation pictures: {done} of {total}",
                image=path,
            )
        )
    if batches:
        ports.generator.close()
    return tuple(
        TrainingImage(
            folder / plan.record(index).file, _caption(run, index, plan), settings.repeats, regular=True
        )
        for index in range(total)
    )


def _plan(run: Run, model: str) -> PicturePlan:
    recipe = run.recipe
    seed = recipe.seed + _SEED_SHIFT
    return PicturePlan(
        slug="regularisation",
        description="",
        seed=seed,
        model=model,
        settings=recipe.generate,
        shots=plan_shots(recipe.shots, recipe.train.regularisation, seed),
    )


def _caption(run: Run, index: int, plan: PicturePlan) -> str:
    """The shot's words and the quality tags, as the set's own captions have them."""
    return ", ".join([*plan.shots[index].words(), *run.recipe.caption.quality_tags])


def _is_there(folder: Path, plan: PicturePlan, index: int) -> bool:
    path = folder / plan.record(index).file
    return load_picture(path) is not None and plan.fits(read_record(path), index)


def _from_folder(folder: Path, repeats: int) -> tuple[TrainingImage, ...]:
    """A user's own pictures with the caption beside each."""
    if not folder.is_dir():
        raise InputError(f"The folder of regularisation pictures {folder} does not exist.")
    found = pictures_in(folder)
    if not found.pictures:
        raise InputError(f"The folder of regularisation pictures {folder} holds no picture.")
    return tuple(
        TrainingImage(picture.path, written_caption(picture), picture.repeats or repeats, regular=True)
        for picture in found.pictures
    )
