"""The WD v3 taggers (Apache-2.0): about ten thousand booru tags a picture, as captioner and as measuring instrument."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
from PIL import Image

from lora_foundry.backends.onnx.files import OnnxModel, find_file
from lora_foundry.context import Context
from lora_foundry.domain.character import Character
from lora_foundry.domain.dataset import PictureRecord
from lora_foundry.domain.tags import booru
from lora_foundry.errors import BackendError, InputError
from lora_foundry.files.download import Source
from lora_foundry.files.images import load_picture
from lora_foundry.ports import FloatArray, Trait

_SIDE = 448
_GENERAL, _CHARACTER = "0", "4"
_THRESHOLDS = {_GENERAL: 0.35, _CHARACTER: 0.85}
_REPOSITORY = "SmilingWolf/wd-vit-tagger-v3"
_YES, _NO = "yes", "no"


class Label(NamedTuple):
    """A tag with spaces for underscores, and its category."""

    name: str
    category: str


class WdTagger:
    """Tags pictures; a tag that somebody asked for is answered with yes or no."""

    model = Source("wd-vit-tagger-v3.onnx", "Apache-2.0", _REPOSITORY, "model.onnx")
    names = Source("wd-vit-tagger-v3.csv", "Apache-2.0", _REPOSITORY, "selected_tags.csv")
    sources = (model, names)

    @classmethod
    def make(cls, context: Context) -> Self:
        """See registry."""
        return cls(context.instruments)

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._model = OnnxModel(self.model, folder)
        self._asked: set[str] = set()

    @cached_property
    def labels(self) -> list[Label]:
        """The tags in the order of the model's output. Raises InputError for a list that is none."""
        path = find_file(self.names, self._folder)
        try:
            with path.open(encoding="utf-8", newline="") as file:
                return [Label(_spaced(row["name"]), row["category"]) for row in csv.DictReader(file)]
        except (KeyError, UnicodeDecodeError, csv.Error) as error:
            raise InputError(f"{path} is no list of WD tags ({error!r}).") from error

    def describe(
        self, character: Character, pictures: Sequence[PictureRecord], folder: Path
    ) -> list[list[str]]:
        """See ports.Captioner: the general tags of each picture, the surest first."""
        tags = []
        for picture in pictures:
            image = load_picture(folder / picture.file, within=2 * _SIDE)
            if image is None:
                raise BackendError(f"The picture {folder / picture.file} cannot be read; run again.")
            chances = self.probabilities([image])[0]
            order = np.argsort(-chances, kind="stable")
            kept = [self.labels[at] for at in order if chances[at] >= _THRESHOLDS[_GENERAL]]
            tags.append([label.name for label in kept if label.category == _GENERAL])
        return tags

    def understand(self, tags: Iterable[str]) -> list[Trait]:
        """See ports.Tagger: a trait is a tag, whose value is yes. Unknown words ask for nothing."""
        known = {label.name for label in self.labels}
        asked = dict.fromkeys(word for tag in tags if (word := booru(tag)) in known)
        self._asked.update(asked)
        return [Trait(word, _YES) for word in asked]

    def read(self, images: Sequence[Image.Image]) -> list[dict[str, str]]:
        """See ports.Tagger: yes or no for every tag that was ever asked for."""
        rows = []
        for image in images:
            chances = self.probabilities([image])[0]
            rows.append(
                {
                    label.name: _YES if chance >= _THRESHOLDS.get(label.category, 1.0) else _NO
                    for label, chance in zip(self.labels, chances, strict=True)
                    if label.name in self._asked
                }
            )
        return rows

    def probabilities(self, images: Sequence[Image.Image]) -> FloatArray:
        """(n, tags), 0 to 1. Raises BackendError where the list of tags belongs to another model."""
        chances = self._model.run_each([prepare(image) for image in images])
        if chances.shape[1] != len(self.labels):
            raise BackendError(
                f"{self.model.name} gives {chances.shape[1]} tags, but {self.names.name} lists {len(self.labels)}."
            )
        return chances


def prepare(image: Image.Image) -> FloatArray:
    """(448, 448, 3): on a white square, scaled, BGR, 0 to 255, float32: what these models were trained on."""
    picture = image.convert("RGBA") if "A" in image.getbands() else image.convert("RGB")
    side = max(picture.size)
    sheet = Image.new("RGB", (side, side), (255, 255, 255))
    place = (side - picture.width) // 2, (side - picture.height) // 2
    sheet.paste(picture, place, picture if picture.mode == "RGBA" else None)
    if side != _SIDE:
        sheet = sheet.resize((_SIDE, _SIDE), Image.Resampling.BICUBIC)
    return np.ascontiguousarray(np.asarray(sheet, np.float32)[:, :, ::-1])


def _spaced(name: str) -> str:
    """Underscores are spaces, but in faces such as ^_^ they are not."""
    return name.replace("_", " ") if any(letter.isalnum() for letter in name) and len(name) > 3 else name
