"""Trains the LoRA on what stands in images/: each picture with the .txt beside it, exactly as a person may
have left them, since those two are what decides the result."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

from lora_foundry.domain.dataset import TaggingResults
from lora_foundry.domain.exclusion import Exclusions
from lora_foundry.domain.lora import MoreTraining, TrainedLora
from lora_foundry.domain.run import Run, fingerprint
from lora_foundry.domain.sections import TrainSection
from lora_foundry.domain.sections.train import WITHOUT_INFLUENCE
from lora_foundry.errors import InputError, StageError, did_you_mean
from lora_foundry.files.images import PICTURES
from lora_foundry.files.paths import CACHE, CHECKPOINTS, RunPaths
from lora_foundry.files.storage import make_folder, read_model, remove_leftovers, require_model, write_model
from lora_foundry.ports import Ports, ProgressCallback, TrainingImage, TrainingJob
from lora_foundry.stages.captioned import read_caption
from lora_foundry.stages.train.regularisation import regularisation_pictures


def run(run: Run, ports: Ports, progress: ProgressCallback) -> TrainedLora:
    """Trains, or goes on with a training that was stopped, and writes training/result.json.

    Raises InputError naming the first picture without a caption, StageError for a picture that has gone, and
    what the trainer raises.
    """
    paths = RunPaths(run.dataset_dir, run.character.slug)
    tagged = require_model(paths.tagging_results, TaggingResults, "caption")
    images = collect_images(paths, tagged, run.recipe.train)
    images += regularisation_pictures(run, ports, progress)
    made_from, settings = _fingerprint(run, images, ports.trainer.model), run.recipe.train
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
        trigger=run.character.trigger,
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
    done already."""
    paths = RunPaths(run.dataset_dir, run.character.slug)
    tagged = require_model(paths.tagging_results, TaggingResults, "caption")
    images = collect_images(paths, tagged, run.recipe.train)
    images += regularisation_pictures(run, ports, lambda event: None)
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


def collect_images(
    paths: RunPaths, tagged: TaggingResults, settings: TrainSection
) -> tuple[TrainingImage, ...]:
    """Every picture in images/ that nobody has thrown out, with its caption, in the order of their names; then those
    in folders named <repeats>_<anything> below it. Raises InputError, StageError."""
    folders = [paths.images, *(path for path in sorted(paths.images.glob("*_*")) if _folder_repeats(path))]
    files = [
        path
        for folder in folders
        for path in sorted(folder.glob("*"))
        if path.suffix.lower() in PICTURES and path.name[0] != "."
    ]
    present = {path.name for path in files}
    if unknown := sorted(settings.image_repeats.keys() - present):
        raise InputError(
            f"train.image_repeats names {unknown[0]!r}, which is not in {paths.images}; "
            f"{did_you_mean(unknown[0], present)}"
        )
    for caption in tagged.captions:
        if caption.file not in present:
            raise StageError(
                f"The picture {paths.images / caption.file} is gone; run the same command again."
            )
    thrown_out = read_model(paths.exclusions, Exclusions) or Exclusions()
    kept = [
        path
        for path in files
        if path.name not in thrown_out.files or not thrown_out.covers(path.name, _hash(path))
    ]
    if files and not kept:
        raise InputError(f"All pictures in {paths.images} are excluded; restore some.")
    return tuple(_training_image(path, paths, settings) for path in kept)


def _training_image(path: Path, paths: RunPaths, settings: TrainSection) -> TrainingImage:
    repeats = settings.image_repeats.get(path.name) or _folder_repeats(path.parent) or settings.repeats
    return TrainingImage(path, read_caption(path), repeats, mask=_mask(path, paths, settings))


def _folder_repeats(folder: Path) -> int:
    """The repeats that a folder's name asks for, as sd-scripts reads it (10_elara); 0 where it asks for none."""
    number, underscore, _ = folder.name.partition("_")
    return int(number) if underscore and number.isdecimal() and folder.is_dir() else 0


def _mask(image: Path, paths: RunPaths, settings: TrainSection) -> Path | None:
    """Where a picture's mask is, if the settings ask for one. Raises InputError where it is not there."""
    if settings.mask == "none":
        return None
    if settings.mask == "alpha":
        return image
    path = paths.masks / f"{image.stem}.png"
    if not path.is_file():
        raise InputError(
            f'{image} has no mask; put {path.name} into {paths.masks}, or set train.mask = "none".'
        )
    return path


def _fingerprint(run: Run, images: tuple[TrainingImage, ...], model: str) -> str:
    """Of everything that decides the file: base, settings, pictures, captions and what its metadata says."""
    settings = run.recipe.train.model_dump(mode="json", exclude=set(WITHOUT_INFLUENCE))
    contents = [
        (image.path.name, _hash(image.path), image.caption, image.repeats, image.regular)
        + ((_hash(image.mask),) if image.mask else ())
        for image in images
    ]
    return fingerprint("train-1", model, settings, contents, run.character, run.output_name)


def _hash(path: Path) -> str:
    try:
        return sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise InputError(f"The picture {path} cannot be read ({error.strerror or error}).") from error


def _is_whole(lora: TrainedLora, path: Path) -> bool:
    """Whether the file that `lora` tells of is still there as it was written."""
    return path.is_file() and sha256(path.read_bytes()).hexdigest() == lora.sha256


def _metadata(run: Run) -> dict[str, str]:
    """What only this stage knows and the file should tell."""
    character = run.character
    return {
        "ss_output_name": run.output_name,
        "modelspec.title": run.output_name,
        "modelspec.description": f"{character.name}: {character.description}",
        "lora_foundry.character": character.model_dump_json(),
        "lora_foundry.recipe": run.recipe.model_dump_json(),
    }
