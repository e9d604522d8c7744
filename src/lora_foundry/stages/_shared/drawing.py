"""How the stages draw: the generator with whatever is put on it, whole batches, one file each. What is on the disk
already is never drawn twice, and a picture's own file says how it was made."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from lora_foundry.domain.dataset import GenerationMetadata, ImageRequest, PictureRecord, ReferenceUse, Round
from lora_foundry.domain.lora import LoraUse
from lora_foundry.domain.picture_plan import PicturePlan, plan_pictures
from lora_foundry.domain.run import Run
from lora_foundry.errors import BackendError, StageError
from lora_foundry.files.hashing import file_hash
from lora_foundry.files.images import load_picture, read_record, save_picture
from lora_foundry.files.paths import RunPaths
from lora_foundry.ports import GeneratedImage, Generator, Ports
from lora_foundry.stages._shared.reference import take_in_reference, told_by_reference

_WRITERS = 4  # pictures of a batch written side by side; packing one takes a tenth of a second and more


class GenerationContext(NamedTuple):
    """What a set's pictures are drawn with: the generator, and what is put on it. A LoRA is called by `trigger`;
    `rounds` are the rounds that led to it, `completed` is what they and the reference add to the description."""

    generator: Generator
    lora: LoraUse | None = None
    reference: ReferenceUse | None = None
    notes: str = ""
    trigger: str = ""
    rounds: tuple[Round, ...] = ()
    completed: tuple[str, ...] = ()

    @property
    def model(self) -> str:
        """The base and all that changes its pictures, as recorded with every picture."""
        return self.generator.model + self.notes

    def plan(self, run: Run, round_number: int | None = None, count: int = 0) -> PicturePlan:
        """The plan of the set, or of an earlier round of `count` pictures."""
        number = len(self.rounds) if round_number is None else round_number
        return plan_pictures(
            run.character,
            run.recipe,
            self.model,
            trigger=self.trigger,
            round_number=number,
            count=count,
            completed=self.completed,
        )

    def after(self, done: Round, lora: Path, trigger: str) -> GenerationContext:
        """The context of the next round: with what this one added to the description, and with its short LoRA, whose
        file is `lora`, where it trained one."""
        context = self._replace(rounds=(*self.rounds, done), completed=(*self.completed, *done.completed))
        if not done.lora:
            return context
        reference = _reference_note(self.reference)
        notes = f"{reference} + round {done.number} LoRA {done.lora[:16]}"
        return context._replace(lora=LoraUse(path=lora), notes=notes, trigger=trigger)

    def draw(self, batches: Iterable[Sequence[ImageRequest]]) -> Iterator[GeneratedImage]:
        return self.generator.generate(batches, self.lora, self.reference)


class ShotAttempt(NamedTuple):
    """A picture to be made: the shot's number from 0, and how often that shot was tried before."""

    shot: int
    number: int = 0


def start_context(run: Run, ports: Ports) -> GenerationContext:
    """The generator with the character's reference image, if it has one, taken into the run's folder, and with what that
    tells of the character where the description is to be completed.

    Raises InputError for a reference that is no picture.
    """
    paths = RunPaths(run.dataset_dir, run.character.slug)
    if not take_in_reference(run, paths):
        return GenerationContext(ports.generator)
    reference = ReferenceUse(path=paths.reference, strength=run.recipe.generate.reference_strength)
    told = told_by_reference(run, ports) if run.recipe.generate.complete_description else ()
    return GenerationContext(
        ports.generator, reference=reference, notes=_reference_note(reference), completed=told
    )


def _reference_note(reference: ReferenceUse | None) -> str:
    """What a picture's record says of the reference image that it follows."""
    if reference is None:
        return ""
    return f" + reference {file_hash(reference.path)[:16]} at {reference.strength:g}"


def context_of(run: Run, ports: Ports, made: GenerationMetadata) -> GenerationContext:
    """The context that a finished set was drawn with. Raises StageError where a LoRA of its rounds has gone."""
    context, paths = start_context(run, ports), RunPaths(run.dataset_dir, run.character.slug)
    for done in made.rounds:
        lora = paths.round(done.number).lora
        if done.lora and not (lora.is_file() and file_hash(lora) == done.lora):
            raise StageError(f"{lora} is gone or was changed; run the 'generate' stage again.")
        context = context.after(done, lora, run.character.trigger)
    return context


def in_batches(attempts: Sequence[ShotAttempt], size: int) -> list[Sequence[ShotAttempt]]:
    """Batches: always the same attempts together, since the others of a batch may change a picture's last
    bits."""
    return [attempts[start : start + size] for start in range(0, len(attempts), size)]


def make_pictures(
    context: GenerationContext,
    plan: PicturePlan,
    batches: Sequence[Sequence[ShotAttempt]],
    place: Callable[[ShotAttempt], Path | None],
) -> Iterator[tuple[ShotAttempt, Path]]:
    """Makes whole batches and saves every picture for which `place` names a file; None means that it is
    there already. A batch's pictures are written side by side, and all are before the next batch is begun.

    Raises BackendError if the generator leaves a picture out or makes it in another size.
    """
    records = {
        (record := plan.record(*attempt)).request.key: (attempt, record)
        for batch in batches
        for attempt in batch
    }
    requests = [[plan.record(*attempt).request for attempt in batch] for batch in batches]
    last = {batch[-1].key for batch in requests}
    writing: list[tuple[ShotAttempt, Path, Future[PictureRecord]]] = []
    with ThreadPoolExecutor(_WRITERS, thread_name_prefix="writer") as writers:
        for request, image in context.draw(requests):
            attempt, record = records.pop(request.key)
            if image.size != (request.width, request.height):
                raise BackendError(
                    f"The generator made picture {record.file} {image.width}x{image.height} instead of "
                    f"{request.width}x{request.height}."
                )
            if (path := place(attempt)) is not None:
                writing.append((attempt, path, writers.submit(save_picture, path, image, record)))
            yield from _finished(writing, wait=request.key in last)
        yield from _finished(writing, wait=True)
    if records:
        raise BackendError(f"The generator left out {len(records)} pictures; run the same command again.")


def _finished(
    writing: list[tuple[ShotAttempt, Path, Future[PictureRecord]]], wait: bool
) -> Iterator[tuple[ShotAttempt, Path]]:
    """What is written, in order, or with `wait` all of what is being written; it is forgotten. Raises StorageError."""
    while writing and (wait or writing[0][2].done()):
        attempt, path, written = writing.pop(0)
        written.result()
        yield attempt, path


def record_of(path: Path, plan: PicturePlan, index: int) -> PictureRecord | None:
    """The record in a picture, with its file's hash, if the picture is one that the plan asks for at
    `index`."""
    record = read_record(path)
    if record is None or not plan.fits(record, index):
        return None
    return record.model_copy(update={"sha256": file_hash(path)})


def load_made(path: Path, made_by: str) -> Image.Image:
    """A picture that a stage has made and that must be there. Raises StageError."""
    image = load_picture(path)
    if image is None:
        raise StageError(f"The picture {path} is missing or damaged; run the '{made_by}' stage again.")
    return image
