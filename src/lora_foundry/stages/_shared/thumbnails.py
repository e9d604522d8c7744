"""Pictures at the size in which they are shown: inside of a page, so that a report is one file, and on a card."""

from __future__ import annotations

import base64
import io
from pathlib import Path

from PIL import Image

from lora_foundry.errors import InputError
from lora_foundry.files.images import read_picture

_EDGE = 256
_JPEG_QUALITY = 85


def data_uri(path: Path) -> str:
    """The picture as a data URI within 256 pixels; empty where there is none."""
    try:
        image = read_picture(path, within=_EDGE)
    except InputError:
        return ""
    data = io.BytesIO()
    if max(image.size) > _EDGE:
        image.thumbnail((_EDGE, _EDGE))
        image.save(data, format="jpeg", quality=_JPEG_QUALITY)
        kind = "jpeg"
    else:
        image.save(data, format="png", optimize=True)
        kind = "png"
    return f"data:image/{kind};base64,{base64.b64encode(data.getvalue()).decode()}"


def enlarge(image: Image.Image, size: int) -> Image.Image:
    """Fits a picture into a square of `size`; small ones keep their pixels sharp."""
    small = max(image.size) * 2 <= size
    scale = size / max(image.size)
    new = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.convert("RGB").resize(new, Image.Resampling.NEAREST if small else Image.Resampling.LANCZOS)
