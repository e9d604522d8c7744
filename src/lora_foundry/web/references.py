"""Pictures that people upload: decoded here under limits and written anew, so that what is kept is a picture and
nothing else, whatever was sent."""

from __future__ import annotations

import hashlib
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from lora_foundry.errors import InputError
from lora_foundry.files.images import COMMON_FORMATS, read_picture
from lora_foundry.files.storage import write_bytes

MOST_UPLOAD = 20 * 1024 * 1024
MOST_PIXELS = 40_000_000
LEAST_EDGE = 32
KEPT_EDGE = 2048


class Reference(NamedTuple):
    """A kept picture: its name is the hash of its content, so the same picture is kept once."""

    name: str
    width: int
    height: int


def keep(folder: Path, data: bytes) -> Reference:
    """Writes an uploaded picture to `folder` as PNG, within KEPT_EDGE pixels, without what else it held.

    Raises InputError for what is no picture, or too large or too small a one.
    """
    picture = decode(data)
    picture.thumbnail((KEPT_EDGE, KEPT_EDGE), Image.Resampling.LANCZOS)
    out = BytesIO()
    picture.save(out, "PNG")
    name = f"{hashlib.sha256(out.getvalue()).hexdigest()[:24]}.png"
    if not (folder / name).is_file():
        write_bytes(folder / name, out.getvalue())
    return Reference(name, picture.width, picture.height)


def decode(data: bytes) -> Image.Image:
    """The first frame as upright RGB. The size is read and judged before anything is decoded. Raises InputError."""
    picture = read_picture(data, most_pixels=MOST_PIXELS, formats=COMMON_FORMATS)
    if min(picture.size) < LEAST_EDGE:
        raise InputError(
            f"The picture has {picture.width} x {picture.height} pixels; each edge needs {LEAST_EDGE} or more."
        )
    return picture
