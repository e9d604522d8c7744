"""Whether a mask fits its picture, looked at before the training: a mask of another shape would count other pixels than
those that its owner meant, and an empty one nothing at all."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from lora_foundry.errors import InputError
from lora_foundry.files.images import picture_size, read_alpha, read_brightness
from lora_foundry.files.paths import RunPaths
from lora_foundry.files.training_set import SetPicture

_NEARLY = 0.01  # of the shape's width and height; a mask saved smaller is rounded to whole pixels
_LEAST = 8  # of 255: darker everywhere, and nobody meant it to count


def mask_of(picture: SetPicture, kind: Literal["none", "alpha", "folder"], paths: RunPaths) -> Path | None:
    """The file that says what counts of a picture, if the recipe asks for one: the picture itself for its
    transparency. Raises InputError where there is none, and where it is empty or has another shape."""
    if kind == "none":
        return None
    if kind == "alpha":
        _refuse_empty(read_alpha(picture.path), f"{picture.path} is transparent throughout")
        return picture.path
    if picture.mask is None:
        raise InputError(
            f"{picture.path} has no mask; put {picture.path.stem}.png into {paths.masks}, or set train.mask = "
            '"none".'
        )
    width, height = picture_size(picture.path)
    across, down = picture_size(picture.mask)
    if abs(across * height - width * down) > _NEARLY * width * down + max(across, down, width, height):
        raise InputError(
            f"The mask {picture.mask} is {across}x{down} and its picture {picture.path.name} is {width}x{height}; "
            "make the mask of the picture's shape."
        )
    _refuse_empty(read_brightness(picture.mask), f"The mask {picture.mask} is black throughout")
    return picture.mask


def _refuse_empty(shown: Image.Image, sentence: str) -> None:
    if np.asarray(shown).max(initial=0) < _LEAST:
        raise InputError(
            f"{sentence}, so nothing of the picture would be learned; replace it, or leave it out."
        )
