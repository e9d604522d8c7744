"""The bundled model's measuring instruments behind the ports: an attribute reader as Tagger, an encoder as Embedder."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property

from PIL import Image

from lora_foundry.mini import world
from lora_foundry.mini.instruments import AttributeReader, ImageEncoder
from lora_foundry.ports import FloatArray, Trait

_COLOURED = ("outfit", "outfit_color")


class MiniTagger:
    """Reads the attributes of the miniature world."""

    @cached_property
    def _reader(self) -> AttributeReader:
        return AttributeReader.load()

    def understand(self, tags: Iterable[str]) -> list[Trait]:
        """See ports.Tagger. "red dress" asks for two traits; what this world does not know asks for none."""
        attributes = world().attributes
        known = {
            value: name for name, values in attributes.items() if name != "outfit_color" for value in values
        }
        found: list[Trait] = []
        for tag in (raw.strip().lower() for raw in tags):
            if tag in known:
                found.append(Trait(known[tag], tag))
                continue
            colour, _, outfit = tag.partition(" ")
            for value in attributes["outfit_color"]:
                if value.split()[0] == colour and outfit in attributes["outfit"]:
                    found += [Trait("outfit", outfit), Trait("outfit_color", value)]
        return list(dict.fromkeys(found))

    def read(self, images: Sequence[Image.Image]) -> list[dict[str, str]]:
        """See ports.Tagger. An attribute that the picture, as read, cannot show is left out."""
        readings = self._reader.read(images)
        plain = [{name: reading.value for name, reading in row.items()} for row in readings]
        return [{name: value for name, value in row.items() if _shows(name, row)} for row in plain]


def _shows(attribute: str, row: Mapping[str, str]) -> bool:
    """Whether a picture of this view, framing and look can show the attribute at all."""
    behind = row.get("view") == "back view"
    close = row.get("framing") in ("upper body shot", "close-up portrait")
    hidden = {
        "expression": behind,
        "eye_color": behind or row.get("expression") == "laughing happily",
        "gender": behind,
        "skin": behind and close,
        "outfit": behind and close,
        "outfit_color": behind and close,
        "pose": row.get("framing") == "close-up portrait",
    }
    scarf = row.get("framing") == "close-up portrait" and row.get("accessory") == "scarf"
    return not (hidden.get(attribute, False) or (scarf and attribute in _COLOURED))


class MiniEmbedder:
    """Tells characters of the miniature world apart."""

    @cached_property
    def _encoder(self) -> ImageEncoder:
        return ImageEncoder.load()

    def embed(self, images: Sequence[Image.Image]) -> FloatArray:
        """See ports.Embedder."""
        return self._encoder.embed(images)
