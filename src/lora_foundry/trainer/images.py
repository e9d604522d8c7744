"""Pictures as a training reads them: the size each is brought to (its bucket), its pixels, and its mask."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from lora_foundry.files.images import read_alpha, read_brightness, read_picture

BucketSize = tuple[int, int]
"""Width and height in pixels that pictures are brought to."""


def commonest_bucket_size(sizes: Sequence[tuple[int, int]], resolution: int, multiple: int) -> BucketSize:
    """The one width and height that all pictures of a set are brought to: the commonest shape among `sizes`,
    scaled to the area of `resolution` squared, in multiples of `multiple`."""
    commonest, _ = min(Counter(sizes).items(), key=lambda item: (-item[1], item[0]))
    return bucket_size(commonest, resolution, multiple)


def bucket_size(size: tuple[int, int], resolution: int, multiple: int) -> BucketSize:
    """A picture's shape scaled to at most the area of `resolution` squared, in multiples of `multiple`: its bucket."""
    width, height = size
    aspect = min(4.0, max(0.25, width / height))
    ideal = resolution * aspect**0.5, resolution / aspect**0.5
    # Each side rounded down or up, but not to a larger area: what was fitted to a memory must stay within it.
    sides = [{max(1, math.floor(side / multiple)), max(1, math.ceil(side / multiple))} for side in ideal]
    candidates = [(across * multiple, down * multiple) for across in sides[0] for down in sides[1]]
    within = [one for one in candidates if one[0] * one[1] <= resolution**2] or [min(candidates)]

    def used(bucket: BucketSize) -> float:
        """Pixels, times the share of the picture that they show, twice: what is cut off is worse than what is small."""
        shape = bucket[0] / bucket[1] / aspect
        return bucket[0] * bucket[1] * min(shape, 1 / shape) ** 2

    return max(within, key=lambda bucket: (used(bucket), bucket))


def read_tensor(path: Path, size: BucketSize, flipped: bool = False) -> Tensor:
    """A picture (3, H, W) in -1..1, scaled to cover `size` and cut to it around the centre; `flipped`:
    mirrored, left for right. A JPEG far larger than that is decoded at a half, a quarter or an eighth of its size, but at
    no less than twice `size`, below which it would be seen. Raises InputError."""
    fitted = ImageOps.fit(read_picture(path, within=2 * max(size)), size, Image.Resampling.LANCZOS)
    pixels = torch.from_numpy(np.asarray(fitted, dtype=np.float32).copy())
    pixels = pixels.permute(2, 0, 1) / 127.5 - 1
    return pixels.flip(-1) if flipped else pixels


def read_mask(path: Path, size: BucketSize, alpha: bool) -> Tensor:
    """What counts of a picture (1, H, W) in 0..1, cut as the picture is: its alpha channel, or how bright the mask
    picture is, which has the picture's shape. Raises InputError."""
    shown = read_alpha(path) if alpha else read_brightness(path)
    fitted = ImageOps.fit(shown, size, Image.Resampling.BILINEAR)
    return torch.from_numpy(np.asarray(fitted, dtype=np.float32).copy())[None] / 255
