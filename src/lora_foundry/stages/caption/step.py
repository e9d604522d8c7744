"""Writes the caption of every picture into the text file that the trainer reads: the trigger word first, then what the
picture shows, quality tags last. A caption that a person has written is theirs and stays, whatever it is called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path

from pydantic import BaseModel

from lora_foundry.domain.captions import framed, own_features, shared_tags
from lora_foundry.domain.character import Character
from lora_foundry.domain.dataset import (
    FRAMED,
    NOTHING_ASKED,
    Caption,
    GenerationMetadata,
    PictureRecord,
    TaggingResults,
    own_record,
)
from lora_foundry.domain.run import ProgressEvent, Run, fingerprint
from lora_foundry.domain.sections import CaptionSection
from lora_foundry.domain.shots import Shot
from lora_foundry.domain.tags import booru
from lora_foundry.errors import InputError, StageError
from lora_foundry.files.hashing import readable_hash
from lora_foundry.files.paths import RunPaths
from lora_foundry.files.sidecars import read_caption
from lora_foundry.files.storage import (
    read_model,
    remove_file,
    remove_leftovers,
    require_model,
    write_model,
    write_text,
)
from lora_foundry.files.training_set import SetPicture, read_set
from lora_foundry.ports import Ports, ProgressCallback
from lora_foundry.stages._shared.captions import compose

STYLE_SHARE = 0.8
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
    files = {picture.name: picture for picture in read_set(paths, excluded=True).pictures}
    pictures = _records(paths, metadata, files)
    described = ports.captioner.describe(character, pictures, paths.images)
    seen = _seen(ports, character, pictures, paths)
    # A style's set shows anything, so what nearly all of it shares is the style: monochrome, sketch.
    of_style = run.recipe.evaluate.subject == "style"
    shared = shared_tags if of_style else own_features
    share = max(section.identity_share, STYLE_SHARE) if of_style else section.identity_share
    common = shared(list(seen.values()), share) if any(seen.values()) else ()
    # Every prompt of the set said what the description was completed with: it is the character's like the description,
    # a hat as well, which nobody could tell by looking.
    pruned = pruned_tags(character, section, (*metadata.completed, *common))
    texts = {
        picture.file: compose(character, picture, tags, section, seen[picture.file], pruned)
        for picture, tags in zip(pictures, described, strict=True)
    }
    texts |= _of_crops(files, texts, _known(paths, earlier, texts, files))
    ours = Written(hashes=_known(paths, earlier, texts, files))
    write_model(paths.captions_journal, ours)  # before any of them is written
    remove_leftovers(paths.images)
    captions = []
    for number, (file, text) in enumerate(texts.items(), 1):
        captions.append(_write(files[file], text, FROM_PLAN, ours.hashes[file]))
        progress(ProgressEvent(stage="caption", done=number, total=len(texts), unit="image"))
    result = TaggingResults(
        character=character.name,
        trigger=character.trigger,
        captioner=FROM_PLAN,
        pruned=pruned,
        fingerprint=fingerprint("caption-3", section, character, [each.sha256 for each in pictures]),
        captions=tuple(captions),
        former=_former(earlier, character.trigger),
    )
    if result != earlier:
        write_model(paths.tagging_results, result)
    remove_file(paths.captions_journal)
    return result


def _records(
    paths: RunPaths, metadata: GenerationMetadata, files: Mapping[str, SetPicture]
) -> list[PictureRecord]:
    """The pictures of the set as records, the drawn ones first: of a person's own nothing was asked for. Raises
    StageError for a drawn one that has gone."""
    for picture in metadata.pictures:
        if picture.file not in files:
            raise StageError(
                f"The picture {paths.images / picture.file} is gone, so it cannot be captioned; run the same command "
                "again."
            )
    drawn = {picture.file for picture in metadata.pictures}
    shots = {picture.file: picture.shot for picture in metadata.pictures}
    own = [
        own_record(
            name,
            readable_hash(picture.path),
            metadata.model,
            _shot(picture, shots),
        )
        for name, picture in files.items()
        if name not in drawn
    ]
    return [*metadata.pictures, *own]


def _shot(picture: SetPicture, drawn: Mapping[str, Shot]) -> Shot:
    """What is known of a picture that was not drawn: of a crop its framing, or what was asked for its source."""
    if picture.crop is None:
        return NOTHING_ASKED
    framing = picture.crop.framing
    return drawn.get(picture.crop.source, NOTHING_ASKED) if framing is None else FRAMED[framing]


def _former(earlier: TaggingResults | None, trigger: str) -> tuple[str, ...]:
    """The trigger words of earlier runs, which a person's captions may still say."""
    known = () if earlier is None else (*earlier.former, earlier.trigger)
    return tuple(word for word in dict.fromkeys(known) if word != trigger)


def _seen(
    ports: Ports, character: Character, pictures: Sequence[PictureRecord], paths: RunPaths
) -> dict[str, list[str]]:
    """What every instrument that looks sees in each picture, the first one's tags first."""
    seen: dict[str, list[str]] = {picture.file: [] for picture in pictures}
    for tagger in ports.captioners:
        for picture, tags in zip(pictures, tagger.describe(character, pictures, paths.images), strict=True):
            seen[picture.file] += tags
    return seen


def pruned_tags(character: Character, section: CaptionSection, common: Sequence[str] = ()) -> tuple[str, ...]:
    """The features that captions leave out, so that the trigger word learns to stand for them: the described ones and
    those that most pictures show."""
    if not section.prune_identity:
        return ()
    kept = {booru(tag) for tag in section.keep}
    return tuple(tag for tag in dict.fromkeys((*character.tags, *common)) if booru(tag) not in kept)


def _known(
    paths: RunPaths, earlier: TaggingResults | None, texts: Mapping[str, str], files: Mapping[str, SetPicture]
) -> dict[str, tuple[str, ...]]:
    """The hashes of each picture's captions that are this stage's own, the one to be written last. What a person cut came
    with the caption of its source."""
    journal = read_model(paths.captions_journal, Written) or Written()
    known = {each.file: (each.written,) for each in earlier.captions if each.written} if earlier else {}
    for file in texts:
        crop = files[file].crop
        if crop is not None and crop.by_hand and crop.source in known:
            known.setdefault(file, known[crop.source])
    return {
        file: tuple(dict.fromkeys((*known.get(file, ()), *journal.hashes.get(file, ()), hash_of(text))))
        for file, text in texts.items()
    }


def _of_crops(
    files: Mapping[str, SetPicture], texts: Mapping[str, str], ours: Mapping[str, Sequence[str]]
) -> dict[str, str]:
    """The captions of crops whose originals have a person's: those words, under the crop's framing where it has one."""
    found = {}
    for name in texts:
        crop = files[name].crop
        if crop is not None and crop.source in files:
            written = _written_by_hand(files[crop.source], ours[crop.source])
            if written is not None:
                words, framing = written[1], crop.framing
                found[name] = words if framing is None else framed(words, FRAMED[framing].angle)
    return found


def hash_of(text: str) -> str:
    """By this a caption is known as one that was written here."""
    return sha256(text.encode()).hexdigest()


def _write(picture: SetPicture, text: str, source: str, ours: Sequence[str]) -> Caption:
    """Writes the caption unless a person's is there, and says which of the two it is now. The last of
    `ours` is `text`'s hash, the one before it that of the caption written last."""
    by_hand = _written_by_hand(picture, ours)
    if by_hand is not None:
        place, said = by_hand
        for path in picture.captions[: picture.captions.index(place)]:
            remove_file(path)  # our own of an earlier run, which would hide the person's
        return Caption(file=picture.name, text=said, source="edited", written=ours[0])
    if picture.caption is None or _read(picture.caption) != text:
        write_text(picture.target, text + "\n")
    return Caption(file=picture.name, text=text, source=source, written=ours[-1])


def _written_by_hand(picture: SetPicture, ours: Sequence[str]) -> tuple[Path, str] | None:
    """The first caption of a picture that this stage has not written, and its file; None where there is none."""
    for path in picture.captions:
        said = _read(path)
        if hash_of(said) not in ours:
            return path, said
    return None


def _read(path: Path) -> str:
    """A caption on one line, as the trainer reads it. Raises InputError for one that it could not use."""
    text = read_caption(path)
    if not text:
        raise InputError(
            f"The caption {path} is empty; write what the picture shows, or delete it to have it written again."
        )
    return text
