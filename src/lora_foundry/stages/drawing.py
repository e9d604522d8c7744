"""How the stages draw: the generator with whatever is put on it, whole batches, one file each. What is on the disk
already is never drawn twice, and a picture's own file says how it was made."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from lora_foundry.domain.dataset import ImageRequest, PictureRecord, ReferenceUse, Round
from lora_foundry.domain.lora import LoraUse
from lora_foundry.domain.picture_plan import PicturePlan, plan_pictures
from lora_foundry.domain.run import Run
from lora_foundry.errors import BackendError, InputError
from lora_foundry.files.images import file_hash, load_picture, read_record, save_picture
from lora_foundry.files.paths import RunPaths
from lora_foundry.files.storage import write_aside
from lora_foundry.ports import GeneratedImage, Generator, Ports

_WRITERS = 4  # pictures of a batch written side by side; packing one takes a tenth of a second and more


class Brush(NamedTuple):
    """What a set's pictures are drawn with: the generator, and what is put on it. A LoRA is called by `trigger`;
    `rounds` are the galleries that led to it, `settled` what they added to the description."""

    generator: Generator
    lora: LoraUse | None = None
    reference: ReferenceUse | None = None
    notes: str = ""
    trigger: str = ""
    rounds: tuple[Round, ...] = ()
    settled: tuple[str, ...] = ()

    @property
    def model(self) -> str:
        """The base and all that changes its pictures, as recorded with every picture."""
        return self.generator.model + self.notes

    def plan(self, run: Run, gallery: int | None = None, count: int = 0) -> PicturePlan:
        """The plan of the last gallery, or of an earlier one of `count` pictures."""
        number = len(self.rounds) if gallery is None else gallery
        return plan_pictures(run.character, run.recipe, self.model, self.trigger, number, count, self.settled)

    def draw(self, batches: Iterable[Sequence[ImageRequest]]) -> Iterator[GeneratedImage]:
        return self.generator.generate(batches, self.lora, self.reference)


class Slot(NamedTuple):
    """A picture to be made: the shot's number from 0, and how often that shot was tried before."""

    shot: int
    attempt: int = 0


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
    there already. A batch's pictures are written side by side, and all are before the next batch is begun.

    Raises BackendError if the generator leaves a picture out or makes it in another size.
    """
    records = {
        (record := plan.record(*slot)).request.key: (slot, record) for batch in batches for slot in batch
    }
    requests = [[plan.record(*slot).request for slot in batch] for batch in batches]
    last = {batch[-1].key for batch in requests}
    writing: list[tuple[Slot, Path, Future[PictureRecord]]] = []
    with ThreadPoolExecutor(_WRITERS, thread_name_prefix="writer") as writers:
        for request, image in brush.draw(requests):
            slot, record = records.pop(request.key)
            if image.size != (request.width, request.height):
                raise BackendError(
                    f"The generator made picture {record.file} {image.width}x{image.height} instead of "
                    f"{request.width}x{request.height}."
                )
            if (path := place(slot)) is not None:
                writing.append((slot, path, writers.submit(save_picture, path, image, record)))
            yield from _finished(writing, wait=request.key in last)
        yield from _finished(writing, wait=True)
    if records:
        raise BackendError(f"The generator left out {len(records)} pictures; run the same command again.")


def _finished(
    writing: list[tuple[Slot, Path, Future[PictureRecord]]], wait: bool
) -> Iterator[tuple[Slot, Path]]:
    """What is written, in order, or with `wait` all of what is being written; it is forgotten. Raises StorageError."""
    while writing and (wait or writing[0][2].done()):
        slot, path, written = writing.pop(0)
        written.result()
        yield slot, path


def record_of(path: Path, plan: PicturePlan, index: int) -> PictureRecord | None:
    """The record in a picture, with its file's hash, if the picture is one that the plan asks for at
    `index`."""
    record = read_record(path)
    if record is None or not plan.fits(record, index):
        return None
    return record.model_copy(update={"sha256": file_hash(path)})
