"""Regularisation pictures: what the base draws for the set's own kind of prompt when nobody is named. Trained beside
the set under captions without the trigger, they keep the character where the trigger is, and the base as it was. Only the
trigger may tell the two apart: where a person's captions are of another form than the shots, "short" would mean the
character and "long" the base, and a LoRA called in a long prompt would draw nobody (measured: docs/benchmarks.md)."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from lora_foundry.domain.captions import uncalled
from lora_foundry.domain.picture_plan import PicturePlan
from lora_foundry.domain.run import ProgressEvent, Run
from lora_foundry.domain.shots import Shot, plan_shots
from lora_foundry.errors import InputError
from lora_foundry.files.images import load_picture, read_record
from lora_foundry.files.paths import RunPaths
from lora_foundry.files.storage import make_folder, remove_leftovers
from lora_foundry.files.training_set import pictures_in
from lora_foundry.ports import Ports, ProgressCallback, TrainingImage
from lora_foundry.stages._shared.captions import written_caption
from lora_foundry.stages._shared.drawing import GenerationContext, ShotAttempt, in_batches, make_pictures

_SEED_SHIFT = 1_000_003  # other pictures than the set's, from the same seed


def regularisation_pictures(
    run: Run, images: Sequence[TrainingImage], ports: Ports, progress: ProgressCallback
) -> tuple[TrainingImage, ...]:
    """The pictures of the folder that the recipe names, or as many drawn ones as it asks for, for the set `images`; those
    that are there already are kept. Raises InputError, and what the generator raises."""
    settings = run.recipe.train
    if settings.regularisation_folder:
        return _from_folder(Path(settings.regularisation_folder).expanduser(), settings.repeats)
    if settings.regularisation == 0:
        return ()
    folder = make_folder(RunPaths(run.dataset_dir, run.character.slug).regularisation)
    remove_leftovers(folder)
    words = _words(run, images)
    plan = _plan(run, ports.generator.model, words)
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
            folder / plan.record(index).file,
            _caption(run, index, plan, written=bool(words)),
            settings.repeats,
            regular=True,
        )
        for index in range(total)
    )


def _words(run: Run, images: Sequence[TrainingImage]) -> list[str]:
    """What the captions of a set with own pictures say besides the triggers; none for a set whose captions are made of
    shots."""
    if all(each.source not in ("own", "mixed") for each in run.member_runs):
        return []
    said = {uncalled(image.caption, run.triggers) for image in images}
    return sorted(said - {""})


def _plan(run: Run, model: str, words: Sequence[str]) -> PicturePlan:
    recipe, count = run.recipe, run.recipe.train.regularisation
    seed = recipe.seed + _SEED_SHIFT
    shots = plan_shots(recipe.shots, count, seed)
    if words:
        order = random.Random(seed).sample(words, len(words))
        shots = tuple(Shot(order[index % len(order)], "", "", "", "") for index in range(count))
    return PicturePlan(
        slug="regularisation",
        description="",
        seed=seed,
        model=model,
        settings=recipe.generate,
        shots=shots,
    )


def _caption(run: Run, index: int, plan: PicturePlan, written: bool) -> str:
    """The words that the picture was drawn for and, where the set's captions are ours, the quality tags that those have."""
    quality = () if written else run.recipe.caption.quality_tags
    return ", ".join([*plan.shots[index].words(), *quality])


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
