"""Small pictures for galleries, made when they are first asked for and kept in memory up to a limit: nothing on the
disk has to be cleared away, and a picture that changes is made anew because its time is part of the key."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from lora_foundry.errors import InputError
from lora_foundry.files.images import read_picture
from lora_foundry.web.problems import NotFoundError

SIZES = (128, 256, 512, 1024)
MOST_BYTES = 64 * 1024 * 1024
_AT_ONCE = 2


class Thumbnail(NamedTuple):
    """A WebP picture and the tag by which a browser knows it."""

    data: bytes
    tag: str


class Thumbnails:
    """The newest thumbnails, MOST_BYTES of them."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[str, int, int, int], bytes] = OrderedDict()
        self._bytes = 0
        self._turns = asyncio.Semaphore(_AT_ONCE)

    async def of(self, path: Path, size: int) -> Thumbnail:
        """The picture at most `size` pixels wide and high, rounded up to one of SIZES. Raises NotFoundError."""
        edge = next((each for each in SIZES if each >= size), SIZES[-1])
        stat = path.stat()
        key = (str(path), stat.st_mtime_ns, stat.st_size, edge)
        tag = f'"{stat.st_mtime_ns:x}-{stat.st_size:x}-{edge}"'
        if key in self._kept:
            self._kept.move_to_end(key)
            return Thumbnail(self._kept[key], tag)
        async with self._turns:
            data = await asyncio.to_thread(shrink, path, edge)
        self._keep(key, data)
        return Thumbnail(data, tag)

    def _keep(self, key: tuple[str, int, int, int], data: bytes) -> None:
        if key not in self._kept:
            self._kept[key] = data
            self._bytes += len(data)
        while self._bytes > MOST_BYTES:
            self._bytes -= len(self._kept.popitem(last=False)[1])


def shrink(path: Path, edge: int) -> bytes:
    """A picture file as WebP within `edge` x `edge` pixels. Raises NotFoundError for what is no picture."""
    try:
        picture = read_picture(path, within=edge)
    except InputError as error:
        raise NotFoundError(f"{path.name} is no picture that can be shown.") from error
    picture.thumbnail((edge, edge), Image.Resampling.BILINEAR, reducing_gap=2.0)
    data = BytesIO()
    picture.save(data, "WEBP", quality=80, method=2)
    return data.getvalue()
