"""Writes the caption of every picture into the .txt file that the trainer reads: the trigger word first,
then what the picture shows, quality tags last. A caption that a person has changed is theirs and stays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path

from pydantic import BaseModel

from lora_foundry.domain.captions import merge, own_features
from lora_foundry.domain.character import Character
from lora_foundry.domain.dataset import Caption, GenerationMetadata, PictureRecord, TaggingResults
from lora_foundry.domain.run import ProgressEvent, Run, fingerprint
from lora_foundry.domain.sections import CaptionSection
from lora_foundry.domain.shots import Shot
from lora_foundry.domain.tags import booru
from lora_foundry.errors import InputError, StageError
from lora_foundry.files.images import file_hash, own_pictures
from lora_foundry.files.paths import RunPaths
from lora_foundry.files.storage import (
    read_model,
    remove_file,
    remove_leftovers,
    require_model,
    storage_errors,
    write_model,
    write_text,
)
from lora_foundry.ports import Ports, ProgressCallback

FROM_PLAN = "plan"  # where a caption came from, in tagging_results.json


class Written(BaseModel):
    """The hashes of all captions that this stage has written or is about to write, by picture.

    It stands in a file of its own only while the stage works: without it, a caption that was written just
    before a kill could not be told from one that a person wrote.
    """

    hashes: dict[str, tuple[str, ...]] = {}


def run(run: Run, ports: Ports, progress: ProgressCallback) -> TaggingResults:
    """Captions every picture of the set.

    Raises StageError naming a picture that has gone, InputError naming a caption of a person's that cannot be
    used.
    """
    paths = RunPaths(run.dataset_dir, run.character.slug)
    metadata = require_model(paths.generation_metadata, GenerationMetadata, "generate")
    section, character = run.recipe.caption, run.character
    earlier = read_model(paths.tagging_results, TaggingResults)
    pictures = (*metadata.pictures, *own_records(paths, metadata))
    described = ports.captioner.describe(character, pictures, paths.images)
    seen = _seen(ports, character, pictures, paths)
    common = own_features(list(seen.values()), section.identity_share) if any(seen.values()) else ()
    pruned = pruned_tags(character, section, common)
    texts = {
        picture.file: compose(character, picture, tags, section, seen[picture.file], pruned)
        for picture, tags in zip(pictures, described, strict=True)
    }
    ours = _remember(paths, earlier, texts)
    remove_leftovers(paths.images)
    captions = []
    for number, (file, text) in enumerate(texts.items(), 1):
        caption = _write(paths.images / file, text, FROM_PLAN, ours.hashes[file])
        captions.append(caption)
        progress(ProgressEvent(stage="caption", done=number, total=len(texts), unit="image"))
    result = TaggingResults(
        character=character.name,
        trigger=character.trigger,
        captioner=FROM_PLAN,
        pruned=pruned,
        fingerprint=fingerprint("caption-2", section, character, [each.sha256 for each in pictures]),
        captions=tuple(captions),
    )
    if result != earlier:
        write_model(paths.tagging_results, result)
    remove_file(paths.captions_journal)
    return result


def own_records(paths: RunPaths, metadata: GenerationMetadata) -> list[PictureRecord]:
    """The user's own pictures as records: nothing was asked for them, so their shot is empty."""
    if not metadata.pictures:
        return []
    blank = metadata.pictures[0].model_copy(update={"shot": Shot("", "", "", "", ""), "attempt": 0})
    return [
        blank.model_copy(update={"file": path.name, "sha256": file_hash(path)})
        for path in own_pictures(paths)
    ]


def _seen(
    ports: Ports, character: Character, pictures: Sequence[PictureRecord], paths: RunPaths
) -> dict[str, list[str]]:
    """What every instrument that looks sees in each picture, the first one's tags first."""
    seen: dict[str, list[str]] = {picture.file: [] for picture in pictures}
    for looker in ports.lookers:
        for picture, tags in zip(pictures, looker.describe(character, pictures, paths.images), strict=True):
            seen[picture.file] += tags
    return seen


def pruned_tags(character: Character, section: CaptionSection, common: Sequence[str] = ()) -> tuple[str, ...]:
    """The features that captions leave out, so that the trigger word learns to stand for them: the described ones and
    those that most pictures show."""
    if not section.prune_identity:
        return ()
    kept = {booru(tag) for tag in section.keep}
    return tuple(tag for tag in dict.fromkeys((*character.tags, *common)) if booru(tag) not in kept)


def compose(
    character: Character,
    picture: PictureRecord,
    tags: Sequence[str],
    section: CaptionSection,
    seen: Sequence[str] = (),
    pruned: Sequence[str] = (),
) -> str:
    """trigger, features, pose, expression, the chosen rest of the shot, what else is seen, quality tags."""
    shot = picture.shot
    asked = [shot.pose, shot.expression, *(str(getattr(shot, part)) for part in section.scene)]
    words = {word.lower() for word in shot.words()}
    features = [tag for tag in tags if tag.lower() not in words]
    return merge(character.trigger, features, asked, seen, pruned, section.quality_tags)


def _remember(paths: RunPaths, earlier: TaggingResults | None, texts: Mapping[str, str]) -> Written:
    """Puts down which captions are this stage's own, before any of them is written."""
    journal = read_model(paths.captions_journal, Written) or Written()
    known = {each.file: (each.written,) for each in earlier.captions if each.written} if earlier else {}
    ours = Written(
        hashes={
            file: tuple(dict.fromkeys((*known.get(file, ()), *journal.hashes.get(file, ()), hash_of(text))))
            for file, text in texts.items()
        }
    )
    if any(_needs_writing(paths.caption(paths.images / file), text) for file, text in texts.items()):
        write_model(paths.captions_journal, ours)
    return ours


def _needs_writing(target: Path, text: str) -> bool:
    return not target.exists() or _read(target) != text


def hash_of(text: str) -> str:
    """By this a caption is known as one that was written here."""
    return sha256(text.encode()).hexdigest()


def _write(image: Path, text: str, source: str, ours: Sequence[str]) -> Caption:
    """Writes the caption unless a person's is there, and says which of the two it is now. The last of
    `ours` is `text`'s hash, the one before it that of the caption written last."""
    if not image.exists():
        raise StageError(
            f"The picture {image} is gone, so it cannot be captioned; run the same command again."
        )
    target = RunPaths.caption(image)
    if target.exists():
        present = _read(target)
        if hash_of(present) not in ours:
            return Caption(file=image.name, text=present, source="edited", written=ours[0])
        if present == text:
            return Caption(file=image.name, text=text, source=source, written=ours[-1])
    write_text(target, text + "\n")
    return Caption(file=image.name, text=text, source=source, written=ours[-1])


def _read(path: Path) -> str:
    """A caption on one line, as the trainer reads it. Raises InputError for one that it could not use."""
    try:
        with storage_errors(path):
            text = " ".join(path.read_text(encoding="utf-8-sig").split())
    except UnicodeDecodeError as error:
        raise InputError(f"The caption {path} is not UTF-8 text; save it as UTF-8.") from error
    if not text:
        raise InputError(
            f"The caption {path} is empty; write what the picture shows, or delete it to have it written again."
        )
    return text
