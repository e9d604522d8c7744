"""Trains the LoRA on what stands in images/: each picture with the .txt beside it, exactly as a person may
have left them, since those two are what decides the result."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from lora_foundry.domain.dataset import TaggingResults
from lora_foundry.domain.lora import MoreTraining, TrainedLora
from lora_foundry.domain.run import Run, fingerprint
from lora_foundry.domain.sections import TrainSection
from lora_foundry.domain.sharing import shareable_character, shareable_recipe
from lora_foundry.errors import InputError, StageError, did_you_mean
from lora_foundry.files.hashing import file_hash, readable_hash
from lora_foundry.files.paths import CACHE, CHECKPOINTS, RunPaths
from lora_foundry.files.storage import make_folder, read_model, remove_leftovers, require_model, write_model
from lora_foundry.files.training_set import LeftOut, list_set, read_set
from lora_foundry.ports import Ports, ProgressCallback, TrainingImage, TrainingJob
from lora_foundry.stages._shared.captions import trained_caption
from lora_foundry.stages.train.masks import mask_of
from lora_foundry.stages.train.regularisation import regularisation_pictures


def run(run: Run, ports: Ports, progress: ProgressCallback) -> TrainedLora:
    """Trains, or goes on with a training that was stopped, and writes training/result.json.

    Raises InputError naming the first picture without a caption, StageError for a picture that has gone, and
    what the trainer raises.
    """
    paths = RunPaths(run.dataset_dir, run.character.slug)
    images = training_images(run)
    images += regularisation_pictures(run, images, ports, progress)
    made_from, settings = (
        _fingerprint(run, images, ports.trainer.model),
        for_cast(run.recipe.train, len(run.members)),
    )
    more = read_model(paths.more_training, MoreTraining)
    if more is not None and more.fingerprint == made_from:
        settings = settings.model_copy(update={"steps": more.steps})
        made_from = fingerprint(made_from, more.steps)
    earlier = read_model(paths.training_result, TrainedLora)
    if earlier is not None and earlier.fingerprint == made_from and _is_whole(earlier, paths.trained_lora):
        return earlier.model_copy(update={"path": paths.trained_lora})

    for folder in (make_folder(paths.training), paths.training / CHECKPOINTS, paths.training / CACHE):
        remove_leftovers(folder)
    job = TrainingJob(
        images=images,
        settings=settings,
        trigger=run.trigger,
        output=paths.trained_lora,
        workdir=paths.training,
        metadata=_metadata(run),
    )
    with ports.gpu.room(run.recipe.train):
        result = ports.trainer.train(job, progress).model_copy(update={"fingerprint": made_from})
    write_model(paths.training_result, result)
    return result


def ask_for_more(run: Run, ports: Ports, times: int) -> bool:
    """Has the next training of this set take half as many steps more, at most `times` times. False where that was
    done already. `pipeline.evaluate` asks."""
    paths = RunPaths(run.dataset_dir, run.character.slug)
    images = training_images(run)
    images += regularisation_pictures(run, images, ports, lambda event: None)
    stamp = _fingerprint(run, images, ports.trainer.model)
    earlier = read_model(paths.more_training, MoreTraining)
    done = earlier.times if earlier is not None and earlier.fingerprint == stamp else 0
    if done >= times:
        return False
    trained = require_model(paths.training_result, TrainedLora, "train").steps
    base = round(trained / (1 + 0.5 * done))
    more = MoreTraining(fingerprint=stamp, times=done + 1, steps=round(base * (1 + 0.5 * (done + 1))))
    write_model(paths.more_training, more)
    return True


def training_images(run: Run) -> tuple[TrainingImage, ...]:
    """The pictures of the set, or of all members' sets. A member with few pictures has each shown more often, so that all
    characters count the same. Raises InputError, StageError."""
    sets = []
    for member in run.member_runs:
        paths = RunPaths(member.dataset_dir, member.character.slug)
        tagged = require_model(paths.tagging_results, TaggingResults, "caption")
        sets.append(collect_images(member, paths, tagged))
    most = max(map(_samples, sets))
    return tuple(
        image._replace(repeats=image.repeats * max(1, round(most / max(_samples(images), 1))))
        for images in sets
        for image in images
    )


def _samples(images: Sequence[TrainingImage]) -> int:
    return sum(image.repeats for image in images)


def for_cast(settings: TrainSection, members: int) -> TrainSection:
    """The recipe's training for so many members (0: no cast): every character is shown as often as it would be alone.
    Epochs grow with the pictures by themselves."""
    return settings.model_copy(update={"steps": settings.steps * members}) if members else settings


def collect_images(run: Run, paths: RunPaths, tagged: TaggingResults) -> tuple[TrainingImage, ...]:
    """Every picture of the set with its caption, repeats and mask, in the set's order. Raises InputError, StageError."""
    settings, present = run.recipe.train, read_set(paths)
    listed = list_set(paths).names()
    for caption in tagged.captions:
        if caption.file not in listed:
            raise StageError(
                f"The picture {paths.images / caption.file} is gone; run the same command again."
            )
    if listed and not present.pictures:
        raise InputError(_none_is_left(present.left_out, paths))
    repeats = _named_repeats(settings, sorted(listed), paths)
    return tuple(
        TrainingImage(
            picture.path,
            trained_caption(picture, run.character.trigger, run.recipe.caption, tagged.former),
            repeats.get(picture.name) or picture.repeats or settings.repeats,
            mask=mask_of(picture, settings.mask, paths),
        )
        for picture in present.pictures
    )


def _none_is_left(left_out: Sequence[LeftOut], paths: RunPaths) -> str:
    """Why no picture of the set is trained on, and what to do."""
    faulty = [each for each in left_out if each.code == "unreadable"]
    excluded = any(each.code == "excluded" for each in left_out)
    if not faulty:
        return f"All pictures in {paths.images} are excluded; restore some."
    if excluded:
        return (
            f"All pictures in {paths.images} are left out: {len(faulty)} cannot be read, the others are excluded; restore "
            f"some, or bring others. {faulty[0].reason}"
        )
    return f"None of the pictures in {paths.images} can be read; bring others. {faulty[0].reason}"


def _named_repeats(settings: TrainSection, listed: Sequence[str], paths: RunPaths) -> dict[str, int]:
    """`train.image_repeats` by the names of the set; a name without its folder will do where only one picture has it.
    Raises InputError for a name that no picture has."""
    found = {}
    for given, repeats in settings.image_repeats.items():
        named = [name for name in listed if name == given] or [
            name for name in listed if PurePosixPath(name).name == given
        ]
        if len(named) != 1:
            hint = (
                did_you_mean(given, listed) if not named else f"there are {' and '.join(named)}; say which."
            )
            raise InputError(f"train.image_repeats names {given!r}, which is not in {paths.images}; {hint}")
        found[named[0]] = repeats
    return found


def _fingerprint(run: Run, images: tuple[TrainingImage, ...], model: str) -> str:
    """Of everything that decides the file: base, settings, pictures, captions and what its metadata says."""
    settings = run.recipe.train.deciding("weights")
    contents = [
        (image.path.name, readable_hash(image.path), image.caption, image.repeats, image.regular)
        + ((readable_hash(image.mask),) if image.mask else ())
        for image in images
    ]
    who = [run.character, *([run.members] if run.members else [])]
    return fingerprint("train-1", model, settings, contents, *who, run.output_name)


def _is_whole(lora: TrainedLora, path: Path) -> bool:
    """Whether the file that `lora` tells of is still there as it was written."""
    return path.is_file() and file_hash(path) == lora.sha256


def _metadata(run: Run) -> dict[str, str]:
    """What only this stage knows and the file should tell."""
    character = run.character
    cast = {}
    if run.members:
        told = [shareable_character(each.character) for each in run.members]
        cast["lora_foundry.cast"] = json.dumps(told, ensure_ascii=False)
    return cast | {
        "ss_output_name": run.output_name,
        "modelspec.title": run.output_name,
        "modelspec.description": f"{character.name}: {run.described}".rstrip(": "),
        "lora_foundry.character": json.dumps(shareable_character(character), ensure_ascii=False),
        "lora_foundry.recipe": shareable_recipe(run.recipe).model_dump_json(),
    }
