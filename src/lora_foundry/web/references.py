"""Pictures that people upload: decoded here under limits and written anew, so that what is kept is a picture and
nothing else, whatever was sent."""

from __future__ import annotations

import hashlib
import warnings
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageOps

from lora_foundry.errors import InputError
from lora_foundry.files.storage import write_bytes

MOST_UPLOAD = 20 * 1024 * 1024
MOST_PIXELS = 40_000_000
LEAST_EDGE = 32
KEPT_EDGE = 2048
FORMATS = ("PNG", "JPEG", "WEBP")


class Reference(NamedTuple):
    """A kept picture: its name is the hash of its content, so the same picture is kept once."""

    name: str
    width: int
    height: int


def keep(folder: Path, data: bytes) -> Reference:
    """Writes an uploaded picture to `folder` as PNG, within KEPT_EDGE pixels, without what else it held.

    Raises InputError for what is no PNG, JPEG or WebP picture, or too large or too small a one.
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
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(BytesIO(data), formats=FORMATS) as file:
                _check_size(file.width, file.height)
                return _flat(ImageOps.exif_transpose(file))
    except InputError:
        raise
    except Image.DecompressionBombError as error:
        raise InputError(f"The picture has more than {MOST_PIXELS:,} pixels; send a smaller one.") from error
    except Exception as error:  # a decoder fed with anything may raise anything
        raise InputError("The file is no whole PNG, JPEG or WebP picture.") from error


def _flat(picture: Image.Image) -> Image.Image:
    """RGB on white, without the file's profile, text or position."""
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        layered = picture.convert("RGBA")
        ground = Image.new("RGBA", layered.size, "white")
        picture = Image.alpha_composite(ground, layered)
    plain = picture.convert("RGB")
    plain.info.clear()
    return plain


def _check_size(width: int, height: int) -> None:
    if width * height > MOST_PIXELS:
        raise InputError(f"The picture has {width} x {height} pixels; at most {MOST_PIXELS:,} are read.")
    if min(width, height) < LEAST_EDGE:
        raise InputError(f"The picture has {width} x {height} pixels; each edge needs {LEAST_EDGE} or more.")
