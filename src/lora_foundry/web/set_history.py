"""What a person changed in a training set, step by step, so that each step can be undone: which captions, which marks, which
picture. It lies beside the set, so it outlives the server; undoing puts back only what still is as the step left it."""

from __future__ import annotations

import base64
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from pydantic import Base64Bytes, BaseModel, ConfigDict

from lora_foundry.domain.dataset import Crops, TaggingResults
from lora_foundry.domain.exclusion import Exclusion, Exclusions
from lora_foundry.errors import StorageError
from lora_foundry.files.paths import RunPaths
from lora_foundry.files.sidecars import MOST_BYTES
from lora_foundry.files.storage import (
    make_folder,
    move_file,
    read_model,
    remove_file,
    remove_tree,
    write_bytes,
    write_model,
    write_text,
)
from lora_foundry.files.training_set import SetPicture, list_set, was_cut
from lora_foundry.web.dataset import caption_of, read_exclusions
from lora_foundry.web.problems import ConflictError

KEPT = 100  # steps of a set


class Caption(BaseModel):
    """A caption before and after a step; None where there was none that can be read. file: the caption's file as it was,
    where its text does not say all of it: in another encoding, on several lines, or unreadable."""

    model_config = ConfigDict(frozen=True)

    file: Base64Bytes = b""
    before: str | None
    after: str | None


class Mark(BaseModel):
    """Whether a picture was thrown out before and after a step."""

    model_config = ConfigDict(frozen=True)

    before: Exclusion | None
    after: Exclusion | None


class SetStep(BaseModel):
    """One change. `words`: what was done, for people; `picture`: the file that was drawn again, whose earlier picture lies in
    the step's folder; `added`: the picture that was cut from another."""

    model_config = ConfigDict(frozen=True)

    id: str
    at: datetime
    words: str
    captions: dict[str, Caption] = {}
    marks: dict[str, Mark] = {}
    picture: str = ""
    added: str = ""


@contextmanager
def recorded(paths: RunPaths, words: str, added: str = "") -> Iterator[None]:
    """Writes down what changes in the block, where anything does. `added`: the name of the crop that it makes."""
    captions, files, marks = _captions(paths), _files_behind(paths), read_exclusions(paths).files
    try:
        yield
    finally:  # what was broken off half way can be undone as well
        made = added if (paths.images / added).is_file() else ""
        _record(paths, words, captions, files, marks, made)


def _record(
    paths: RunPaths,
    words: str,
    captions: dict[str, str | None],
    files: dict[str, bytes],
    marks: dict[str, Exclusion],
    added: str,
) -> None:
    now, marked = _captions(paths), read_exclusions(paths).files
    step = _step(
        words,
        captions={
            name: Caption(
                before=captions.get(name), after=now.get(name), file=base64.b64encode(files.get(name, b""))
            )
            for name in captions | now
            if captions.get(name) != now.get(name)
        },
        marks={
            name: Mark(before=marks.get(name), after=marked.get(name))
            for name in marks | marked
            if marks.get(name) != marked.get(name)
        },
        added=added,
    )
    if step.captions or step.marks or step.added:
        _keep(paths, step)


def put_picture(paths: RunPaths, name: str, new: Path) -> None:
    """Puts a newly drawn picture in the place of the one that is there, which is kept for undoing it. Raises StorageError."""
    step = _step(f"drew {name} again", picture=name)
    _keep(paths, step)  # first, so that the old picture is never where nobody finds it
    kept = _folder(paths, step) / name
    try:
        move_file(paths.images / name, kept)
        move_file(new, paths.images / name)
    except StorageError:
        if kept.is_file() and not (paths.images / name).exists():
            move_file(kept, paths.images / name)
        _drop(paths, step)
        raise


def last_step(paths: RunPaths) -> SetStep | None:
    """The newest step that can be undone."""
    files = _files(paths)
    return read_model(files[-1], SetStep) if files else None


def undo(paths: RunPaths) -> SetStep:
    """Takes the newest step back. Raises ConflictError where there is none, or where somebody has changed it since."""
    step = last_step(paths)
    if step is None:
        raise ConflictError("There is nothing to undo.")
    listed = {picture.name: picture for picture in list_set(paths).pictures}
    changed = [
        name
        for name, caption in step.captions.items()
        if name in listed and caption_of(listed[name]) != caption.after
    ]
    if changed:
        _drop(paths, step)
        raise ConflictError(
            f"The caption of {changed[0]} was changed by another program since, so this step ({step.words}) stays."
        )
    marks = dict(read_exclusions(paths).files)
    if any(marks.get(name) != mark.after for name, mark in step.marks.items()):
        _drop(paths, step)
        raise ConflictError(
            f"What is left out was changed by another program since, so this step ({step.words}) stays."
        )
    if step.added and step.added in listed:
        _remove_crop(paths, step, listed[step.added])
    for name, caption in step.captions.items():
        if name in listed:
            target = listed[name].target
            if caption.file:
                write_bytes(target, caption.file)
            elif caption.before is None:
                remove_file(target)
            else:
                write_text(target, caption.before + "\n")
    if step.marks:
        for name, mark in step.marks.items():
            if mark.before is None:
                marks.pop(name, None)
            else:
                marks[name] = mark.before
        write_model(paths.exclusions, Exclusions(files=marks))
    if step.picture and (kept := _folder(paths, step) / step.picture).is_file():
        move_file(kept, paths.images / step.picture)
    _drop(paths, step)
    return step


def _step(
    words: str,
    captions: dict[str, Caption] | None = None,
    marks: dict[str, Mark] | None = None,
    picture: str = "",
    added: str = "",
) -> SetStep:
    now = datetime.now(UTC)
    name = f"{now:%Y%m%d-%H%M%S-%f}-{secrets.token_hex(2)}"
    return SetStep(
        id=name,
        at=now,
        words=words,
        captions=captions or {},
        marks=marks or {},
        picture=picture,
        added=added,
    )


def _remove_crop(paths: RunPaths, step: SetStep, picture: SetPicture) -> None:
    """The crop that a step made, and what belongs to it. Raises ConflictError where another program has changed it."""
    if picture.crop is None or not was_cut(picture):
        _drop(paths, step)
        raise ConflictError(
            f"{picture.name} was changed by another program since, so this step ({step.words}) stays."
        )
    for file in (picture.path, *picture.captions, *([picture.mask] if picture.mask else [])):
        remove_file(file)
    crops = read_model(paths.crops, Crops) or Crops()
    write_model(
        paths.crops,
        Crops(files={name: crop for name, crop in crops.files.items() if name != picture.name}),
    )
    tagged = read_model(paths.tagging_results, TaggingResults)
    if tagged is not None and any(each.file == picture.name for each in tagged.captions):
        kept = tuple(each for each in tagged.captions if each.file != picture.name)
        write_model(paths.tagging_results, tagged.model_copy(update={"captions": kept}))


def _captions(paths: RunPaths) -> dict[str, str | None]:
    return {picture.name: caption_of(picture) for picture in list_set(paths).pictures}


def _files_behind(paths: RunPaths) -> dict[str, bytes]:
    """The captions' files whose text is not all that they hold. What is too large is no caption, and nobody may write over
    it (`write_caption`)."""
    found = {}
    for picture in list_set(paths).pictures:
        try:
            file = picture.caption
            if file is None or file.stat().st_size > MOST_BYTES:
                continue
            data = file.read_bytes()
        except OSError:
            continue  # a link that leads nowhere
        if data != f"{caption_of(picture)}\n".encode():
            found[picture.name] = data
    return found


def _files(paths: RunPaths) -> list[Path]:
    return sorted(paths.edits.glob("*.json")) if paths.edits.is_dir() else []


def _folder(paths: RunPaths, step: SetStep) -> Path:
    return make_folder(paths.edits / step.id)


def _keep(paths: RunPaths, step: SetStep) -> None:
    make_folder(paths.edits)
    for old in _files(paths)[: -(KEPT - 1)]:
        remove_file(old)
        remove_tree(paths.edits / old.stem)
    write_model(paths.edits / f"{step.id}.json", step)


def _drop(paths: RunPaths, step: SetStep) -> None:
    remove_file(paths.edits / f"{step.id}.json")
    remove_tree(paths.edits / step.id)
