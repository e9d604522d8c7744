"""Numbers that tell a usable picture from a broken one without any model: contrast, sharpness, and two ways
to see that two pictures are one. Plain NumPy, so that the same picture gives the same verdict everywhere."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

Grey = npt.NDArray[np.float64]
_HASH_SIZE = 8
_THUMB = 32


def grey(image: Image.Image) -> Grey:
    """The picture's luma, 0 to 255."""
    return np.asarray(image.convert("L"), dtype=np.float64)


def contrast(levels: Grey) -> float:
    """Standard deviation of the grey levels; a blank picture has nearly none."""
    return float(levels.std())


def sharpness(levels: Grey) -> float:
    """Variance of the Laplacian (Pech-Pacheco et al. 2000); blurred pictures have little."""
    inner = levels[1:-1, 1:-1]
    if not inner.size:
        return 0.0
    around = levels[:-2, 1:-1] + levels[2:, 1:-1] + levels[1:-1, :-2] + levels[1:-1, 2:]
    return float((around - 4.0 * inner).var())


def difference_hash(image: Image.Image) -> int:
    """64 bits: in a 9x8 grey thumbnail, is each pixel darker than its right neighbour? Survives scaling and
    re-encoding."""
    small = image.convert("L").resize((_HASH_SIZE + 1, _HASH_SIZE), Image.Resampling.BOX)
    levels = np.asarray(small, dtype=np.int16)
    bits = (levels[:, 1:] > levels[:, :-1]).ravel()
    return int("".join("1" if bit else "0" for bit in bits), 2)


def hash_distance(first: int, second: int) -> int:
    """How many bits differ."""
    return (first ^ second).bit_count()


def thumbnail(image: Image.Image) -> Grey:
    """What `difference` compares: a 32 px grey thumbnail with mean 0 and length 1."""
    small = image.convert("L").resize((_THUMB, _THUMB), Image.Resampling.BOX)
    levels = np.asarray(small, dtype=np.float64)
    levels = levels - levels.mean()
    length = float(np.linalg.norm(levels))
    unit: Grey = levels / length if length > 0 else levels
    return unit


def difference(first: Grey, second: Grey) -> float:
    """1 minus the correlation of two thumbnails: 0 for one picture, however bright, 1 for unrelated ones.

    Hashes of simple drawings of one character collide; this keeps them apart.
    """
    return 1.0 - float((first * second).sum())
