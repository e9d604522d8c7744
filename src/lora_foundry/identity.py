"""Who is in the pictures, by their embeddings alone: the most cohesive cluster of a set is its character, and what
lies far from it is somebody else. After The Chosen One (arXiv 2311.10093), but without its random K-means: the
cluster is grown from every picture in turn and the tightest one kept, so that the same set gives the same answer."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from lora_foundry.ports import FloatArray

LEAST = 4  # with fewer pictures nobody can say which of them is the odd one
_LEAST_LENGTH = 1e-8
_MOST_ROUNDS = 20


class Core(NamedTuple):
    """The most cohesive cluster: its rows in ascending order, their mean direction, their mean pairwise cosine."""

    members: tuple[int, ...]
    centre: FloatArray
    cohesion: float


def find_core(vectors: FloatArray, size: int) -> Core:
    """The `size` rows of `vectors` (n, d, each of length 1) that lie closest together; all of them where there are
    fewer. Grown from each row with its nearest, then moved to the nearest of their mean until nothing changes."""
    count = len(vectors)
    size = max(1, min(size, count))
    near = vectors @ vectors.T
    ranked = np.sort(near, axis=1)[:, -size:].mean(axis=1)
    members = _nearest(vectors, near[int(ranked.argmax())], size)
    for _ in range(_MOST_ROUNDS):
        moved = _nearest(vectors, likeness(vectors, direction(vectors[list(members)])), size)
        if moved == members or cohesion(vectors[list(moved)]) < cohesion(vectors[list(members)]):
            break
        members = moved
    inside = vectors[list(members)]
    return Core(members, direction(inside), cohesion(inside))


def grow(vectors: FloatArray, core: Core, least: float) -> FloatArray:
    """The mean direction of all rows that show the core's character: those with a cosine of `least` or more to it,
    found anew around their own mean until nothing changes. A tight core alone lies to one side of its character."""
    inside = likeness(vectors, core.centre) >= least
    centre = core.centre
    for _ in range(_MOST_ROUNDS):
        if not inside.any():
            break
        centre = direction(vectors[inside])
        moved = likeness(vectors, centre) >= least
        if (moved == inside).all():
            break
        inside = moved
    return centre


def _nearest(vectors: FloatArray, closeness: FloatArray, size: int) -> tuple[int, ...]:
    order = np.argsort(-closeness, kind="stable")[:size]
    return tuple(sorted(int(row) for row in order))


def direction(vectors: FloatArray) -> FloatArray:
    """The mean of the rows, brought to length 1."""
    mean = vectors.mean(axis=0)
    centre: FloatArray = mean / np.float32(max(float(np.linalg.norm(mean)), _LEAST_LENGTH))
    return centre


def likeness(vectors: FloatArray, centre: FloatArray) -> FloatArray:
    """Cosine of each row with `centre`, -1 to 1."""
    cosines: FloatArray = vectors @ centre
    return cosines


def cohesion(vectors: FloatArray) -> float:
    """Mean cosine of all pairs of different rows; 1 for a single row."""
    count = len(vectors)
    if count < 2:
        return 1.0
    total = vectors.sum(axis=0)
    return float((total @ total - count) / (count * (count - 1)))


def mean_distance(vectors: FloatArray) -> float:
    """Mean pairwise cosine distance, 0 to 2: what the rounds of The Chosen One bring down."""
    return round(1.0 - cohesion(vectors), 4)
