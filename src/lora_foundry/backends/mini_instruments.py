"""The bundled model's measuring instruments behind the ports: an attribute reader as Tagger, an encoder as
Embedder."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Self

from PIL import Image

from lora_foundry.context import Context
from lora_foundry.domain.character import Character
from lora_foundry.domain.dataset import PictureRecord
from lora_foundry.files.images import read_picture
from lora_foundry.mini import world
from lora_foundry.mini.instruments import AttributeReader, ImageEncoder
from lora_foundry.ports import FloatArray, Trait

_CLOSE = ("upper body shot", "close-up portrait")
# The poses that arms alone tell, so that a picture without legs shows them too.
_ARM_POSES = ("arms crossed", "reaching up", "jumping", "dancing", "fighting stance")


class MiniTagger:
    """Reads the attributes of the miniature world; as a captioner, the features of the character that it sees."""

    @classmethod
    def make(cls, context: Context) -> Self:
        """See registry."""
        return cls()

    @cached_property
    def _reader(self) -> AttributeReader:
        return AttributeReader.load()

    def understand(self, tags: Iterable[str]) -> list[Trait]:
        """See ports.Tagger. "red dress" asks for two traits, "close-up portrait" and a sitting pose for
        one: the pose cannot be seen. What this world does not know asks for nothing."""
        found: dict[str, str] = {}
        for tag in tags:
            for trait in _traits(" ".join(tag.lower().split())):
                found.setdefault(trait.attribute, trait.value)
        return [Trait(name, value) for name, value in found.items() if _shows(name, found)]

    def read(self, images: Sequence[Image.Image]) -> list[dict[str, str]]:
        """See ports.Tagger. An attribute that the picture, as read, cannot show is left out."""
        rows = [{name: reading.value for name, reading in row.items()} for row in self._reader.read(images)]
        return [{name: value for name, value in row.items() if _shows(name, row)} for row in rows]

    def describe(
        self, character: Character, pictures: Sequence[PictureRecord], folder: Path
    ) -> list[list[str]]:
        """See ports.Captioner. What is seen of the shot is left to the plan, which asked for it."""
        rows = self.read([read_picture(folder / picture.file) for picture in pictures])
        return [_features(row) for row in rows]


def _features(row: Mapping[str, str]) -> list[str]:
    """A character's features as tags; the colour of clothes stands before them."""
    apart = {"outfit", "outfit_color"}
    tags = [row[name] for name in world().identity if name in row and name not in apart]
    if apart <= row.keys():
        tags.append(f"{row['outfit_color']} {row['outfit']}")
    return tags


def _traits(tag: str) -> list[Trait]:
    """What one tag asks for: a known word, a colour with an outfit, or hair by colour and style at once."""
    attributes = world().attributes
    for name, values in attributes.items():
        if tag in values and name != "outfit_color":
            return [Trait(name, tag)]
    first, _, rest = tag.partition(" ")
    if rest in attributes["outfit"] and first in attributes["outfit_color"]:
        return [Trait("outfit", rest), Trait("outfit_color", first)]
    hair = {
        value.removesuffix(" hair"): Trait(name, value)
        for name in ("hair_color", "hair_style")
        for value in attributes[name]
    }
    words = tag.split()
    if words[-1:] == ["hair"]:
        words.pop()  # "long brown hair"; else "brown ponytail"
    elif not {trait.value for trait in hair.values()} & set(words[-1:]):
        return []
    return [hair[word] for word in words] if all(word in hair for word in words) else []


def _shows(attribute: str, row: Mapping[str, str]) -> bool:
    """Whether a picture of this view, framing and look can show the attribute at all."""
    behind, framing = row.get("view") == "back view", row.get("framing")
    portrait, close = framing == "close-up portrait", framing in _CLOSE
    scarf = portrait and row.get("accessory") == "scarf"  # it covers the collar
    hidden = {
        "expression": behind,
        "eye_color": behind or row.get("expression") == "laughing happily",  # they are closed
        "gender": behind,
        "skin": behind and close,
        "outfit": (behind and close) or scarf,
        "outfit_color": (behind and close) or scarf,
        "pose": portrait or (close and row.get("pose") not in _ARM_POSES),
    }
    return not hidden.get(attribute, False)


class MiniEmbedder:
    """Tells characters of the miniature world apart."""

    same = 0.85  # 99% of pictures of one character reach it; one other hair colour, outfit colour or accessory does not

    @classmethod
    def make(cls, context: Context) -> Self:
        """See registry."""
        return cls()

    @cached_property
    def _encoder(self) -> ImageEncoder:
        return ImageEncoder.load()

    def embed(self, images: Sequence[Image.Image]) -> FloatArray:
        """See ports.Embedder."""
        return self._encoder.embed(images)
