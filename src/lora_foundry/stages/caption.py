"""Writes the caption of every picture into the .txt file that the trainer reads: the trigger word first, then what the
picture shows, quality tags last. A caption that a person has changed is theirs and stays."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

from lora_foundry.domain.character import Character
from lora_foundry.domain.dataset import Caption, GenerationMetadata, PictureRecord, TaggingResults
from lora_foundry.domain.recipe import CaptionSection
from lora_foundry.domain.run import ProgressEvent, Run, fingerprint
from lora_foundry.errors import StageError
from lora_foundry.paths import RunPaths
from lora_foundry.ports import Ports, ProgressCallback
from lora_foundry.storage import read_model, require_model, write_model, write_text


def run(run: Run, ports: Ports, progress: ProgressCallback) -> TaggingResults:
    """Captions every picture of the set. Raises StageError naming a picture that has gone."""
    paths = RunPaths(run.dataset_dir, run.character.slug)
    metadata = require_model(paths.generation_metadata, GenerationMetadata, "generate")
    section, character = run.recipe.caption, run.character
    made_from = fingerprint(section, character, [picture.sha256 for picture in metadata.pictures])
    earlier = read_model(paths.tagging_results, TaggingResults)
    described = ports.captioner.describe(character, metadata.pictures, paths.images)
    captions = []
    for number, (picture, tags) in enumerate(zip(metadata.pictures, described, strict=True), 1):
        text = compose(character, picture, tags, section)
        captions.append(_write(paths.images / picture.file, text, _written_before(earlier, picture.file)))
        progress(ProgressEvent(stage="caption", done=number, total=len(described), unit="image"))
    result = TaggingResults(
        character=character.name,
        trigger=character.trigger,
        captioner=section.backend,
        pruned=pruned_tags(character, section),
        fingerprint=made_from,
        captions=tuple(captions),
    )
    if result != earlier:
        write_model(paths.tagging_results, result)
    return result


def pruned_tags(character: Character, section: CaptionSection) -> tuple[str, ...]:
    """The features that captions leave out, so that the trigger word learns to stand for them."""
    kept = {tag.lower() for tag in section.keep}
    return tuple(tag for tag in character.tags if tag.lower() not in kept) if section.prune_identity else ()


def compose(
    character: Character, picture: PictureRecord, tags: Sequence[str], section: CaptionSection
) -> str:
    """trigger, features, pose, expression, the chosen rest of the shot, quality tags; nothing twice."""
    shot = picture.shot
    scene = [str(getattr(shot, part)) for part in section.scene]
    hidden = set(shot.words()) - {shot.pose, shot.expression, *scene}
    placed = {*shot.words(), *section.quality_tags, character.trigger}
    left_out = {*pruned_tags(character, section), *hidden, *placed}
    features = [tag for tag in tags if tag not in left_out]
    parts = [character.trigger, *features, shot.pose, shot.expression, *scene, *section.quality_tags]
    return ", ".join(dict.fromkeys(part for part in parts if part))


def _written_before(earlier: TaggingResults | None, file: str) -> str | None:
    """The hash of the caption that an earlier run wrote for this picture."""
    return next((each.written for each in earlier.captions if each.file == file), None) if earlier else None


def _write(image: Path, text: str, written_before: str | None) -> Caption:
    """Writes the caption unless a person's is there, and says which of the two it is now."""
    if not image.exists():
        raise StageError(
            f"The picture {image} is gone, so it cannot be captioned; run the same command again."
        )
    target = RunPaths.caption(image)
    ours = sha256(text.encode()).hexdigest()
    if target.exists():
        present = target.read_text(encoding="utf-8", errors="replace").strip()
        hashed = sha256(present.encode()).hexdigest()
        if hashed == ours:
            return Caption(file=image.name, text=text, source="plan", written=ours)
        if written_before is None or hashed != written_before:
            return Caption(file=image.name, text=present, source="edited", written=written_before or "")
    write_text(target, text + "\n")
    return Caption(file=image.name, text=text, source="plan", written=ours)
