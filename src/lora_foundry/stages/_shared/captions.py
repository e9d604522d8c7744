"""How a picture's caption comes to be what the trainer reads: put together from what was asked for and what is seen,
or taken from the file that a person has left beside the picture, under the trigger word."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from lora_foundry.domain.captions import call, merge, one_line
from lora_foundry.domain.character import Character
from lora_foundry.domain.dataset import PictureRecord
from lora_foundry.domain.sections import CaptionSection
from lora_foundry.errors import InputError
from lora_foundry.files.sidecars import read_caption
from lora_foundry.files.training_set import SetPicture


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
    return one_line(merge(character.trigger, features, asked, seen, pruned, section.quality_tags))


def written_caption(picture: SetPicture) -> str:
    """What stands in the file of a picture's caption, on one line. Raises InputError where there is nothing."""
    if picture.caption is None:
        raise InputError(
            f"{picture.path} has no caption; write {picture.path.with_suffix('.txt').name} beside it, or take the "
            "picture away."
        )
    text = read_caption(picture.caption)
    if not text:
        raise InputError(
            f"The caption {picture.caption} is empty; write what the picture shows, or take the picture away."
        )
    return text


def trained_caption(
    picture: SetPicture, trigger: str, section: CaptionSection, former: Iterable[str] = ()
) -> str:
    """The caption as the trainer reads it: as it was written, and under the trigger where the recipe wants that of a
    person's captions too. Ours begin with it. Raises InputError."""
    text = written_caption(picture)
    return text if section.kept == "as_written" else call(text, trigger, former)
