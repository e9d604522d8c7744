"""Makes the pictures of the plan, one file each, and goes on where it stopped: hours of work must survive a
crash.

A picture's own file says how it was made, so the folder itself is the record of what is done; the result
file only sums it up at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

from lora_foundry.domain.dataset import GenerationMetadata, ImageRequest, PictureRecord, ReferenceUse
from lora_foundry.domain.lora import LoraUse
from lora_foundry.domain.picture_plan import PicturePlan, plan_pictures
from lora_foundry.domain.run import ProgressEvent, Run
from lora_foundry.errors import BackendError, InputError
from lora_foundry.paths import RunPaths
from lora_foundry.pictures import file_hash, load_picture, read_record, save_picture
from lora_foundry.ports import GeneratedImage, Generator, Ports, ProgressCallback
from lora_foundry.storage import (
    make_folder,
    move_file,
    read_model,
    remove_leftovers,
    write_aside,
    write_model,
)


class Brush(NamedTuple):
    """What a set's pictures are drawn with: the generator, and what is put on it."""

    generator: Generator
    lora: LoraUse | None = None
    reference: ReferenceUse | None = None
    notes: str = ""

    @property
    def model(self) -> str:
        """The base and all that changes its pictures, as recorded with every picture."""
        return self.generator.model + self.notes

    def draw(self, batches: Iterable[Sequence[ImageRequest]]) -> Iterator[GeneratedImage]:
        return self.generator.generate(batches, self.lora, self.reference)


class Slot(NamedTuple):
    """A picture to be made: the shot's number from 0, and how often that shot was tried before."""

    shot: int
    attempt: int = 0


def run(run: Run, ports: Ports, progress: ProgressCallback) -> GenerationMetadata:
    """Makes what is missing and writes generation_metadata.json. Raises what the generator raises, and
    StorageError."""
    started = perf_counter()
    paths = RunPaths(run.dataset_dir, run.character.slug)
    brush = take_brush(run, ports)
    plan = plan_pictures(run.character, run.recipe, brush.model)
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
        seconds=round(perf_counter() - started, 3),
    )
    write_model(paths.generation_metadata, result)
    return result


def take_brush(run: Run, ports: Ports) -> Brush:
    """The generator with the character's reference image, if it has one, taken into the run's folder.

    Raises InputError for a reference that is no picture.
    """
    given = run.character.reference_image
    if given is None:
        return Brush(ports.generator)
    paths = RunPaths(run.dataset_dir, run.character.slug)
    picture = load_picture(given) or (load_picture(paths.reference) if not given.exists() else None)
    if picture is None:
        raise InputError(
            f"The reference image {given} is missing or no picture; give a PNG, JPEG or WebP file."
        )
    write_aside(paths.reference, lambda aside: picture.save(aside, format="PNG"))
    strength = run.recipe.generate.reference_strength
    notes = f" + reference {file_hash(paths.reference)[:16]} at {strength:g}"
    return Brush(
        ports.generator, reference=ReferenceUse(path=paths.reference, strength=strength), notes=notes
    )


def slices(slots: Sequence[Slot], size: int) -> list[Sequence[Slot]]:
    """Batches: always the same slots together, since the others of a batch may change a picture's last
    bits."""
    return [slots[start : start + size] for start in range(0, len(slots), size)]


def make_pictures(
    brush: Brush,
    plan: PicturePlan,
    batches: Sequence[Sequence[Slot]],
    place: Callable[[Slot], Path | None],
) -> Iterator[tuple[Slot, Path]]:
    """Makes whole batches and saves every picture for which `place` names a file; None means that it is
    there already.

    Raises BackendError if the generator leaves a picture out or makes it in another size.
    """
    records = {
        (record := plan.record(*slot)).request.key: (slot, record) for batch in batches for slot in batch
    }
    requests = [[plan.record(*slot).request for slot in batch] for batch in batches]
    for request, image in brush.draw(requests):
        slot, record = records.pop(request.key)
        if image.size != (request.width, request.height):
            raise BackendError(
                f"The generator made picture {record.file} {image.width}x{image.height} instead of "
                f"{request.width}x{request.height}."
            )
        if (path := place(slot)) is not None:
            save_picture(path, image, record)
            yield slot, path
    if records:
        raise BackendError(f"The generator left out {len(records)} pictures; run the same command again.")


def record_of(path: Path, plan: PicturePlan, index: int) -> PictureRecord | None:
    """The record in a picture, with its file's hash, if the picture is one that the plan asks for at
    `index`."""
    record = read_record(path)
    if record is None or not plan.fits(record, index):
        return None
    return record.model_copy(update={"sha256": file_hash(path)})


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
