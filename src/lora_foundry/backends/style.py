"""An embedder of styles: how a picture is made, wherever in it things stand. It knows colours, and strokes by strength and
direction at four sizes, and nothing of what is shown; it needs no network and no download."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import numpy as np
from PIL import Image

from lora_foundry.context import Context
from lora_foundry.ports import FloatArray

_EDGE = 256  # pixels of the shorter side; twice as large is another style
_SIZES = 4  # each half of the one before
_TONES = 6
_DIRECTIONS = 6
# Edges of the strengths of a stroke, in grey levels (0 to 255) a pixel: flat, grain, shading, edges, outlines.
_STRENGTHS = np.array([0.0, 1.0, 3.0, 8.0, 20.0, 50.0, np.inf])


class StyleEmbedder:
    """Texture is what stays of features when their places are dropped (Gatys, Ecker and Bethge, arXiv 1505.07376); here the
    features are colour and gradient, and what stays are their histograms. Each is taken as the square roots of its shares,
    so that the cosine of two is the Bhattacharyya coefficient; colours count as much as strokes."""

    same = 0.85

    @classmethod
    def make(cls, context: Context) -> Self:
        """See registry."""
        return cls()

    def embed(self, images: Sequence[Image.Image]) -> FloatArray:
        """See ports.Embedder: (n, 360)."""
        length = _TONES**3 + _SIZES * _DIRECTIONS * (len(_STRENGTHS) - 1)
        rows = [_row(each) for each in images]
        return np.stack(rows) if rows else np.zeros((0, length), np.float32)


def _row(image: Image.Image) -> FloatArray:
    scale = _EDGE / min(image.size)
    frame = max(_EDGE, round(image.width * scale)), max(_EDGE, round(image.height * scale))
    picture = image.convert("RGB").resize(frame, Image.Resampling.BICUBIC).convert("YCbCr")
    light = picture.getchannel("Y")
    strokes = []
    for _ in range(_SIZES):
        strokes.append(_strokes(np.asarray(light, np.float32)))
        light = light.resize((light.width // 2, light.height // 2), Image.Resampling.BOX)
    parts = [_colours(np.asarray(picture)), *(each / np.sqrt(_SIZES) for each in strokes)]
    return np.asarray(np.concatenate(parts) / np.sqrt(2), np.float32)


def _colours(pixels: np.ndarray) -> FloatArray:
    """pixels: (h, w, 3), 0 to 255."""
    tones = pixels.reshape(-1, 3).astype(np.intp) * _TONES // 256
    return _shares((tones[:, 0] * _TONES + tones[:, 1]) * _TONES + tones[:, 2], _TONES**3)


def _strokes(light: FloatArray) -> FloatArray:
    """light: (h, w), 0 to 255."""
    down, right = np.gradient(light)
    strength = np.digitize(np.hypot(down, right), _STRENGTHS[1:-1])
    angle = np.arctan2(down, right) % np.pi
    direction = np.minimum((angle / np.pi * _DIRECTIONS).astype(np.intp), _DIRECTIONS - 1)
    kinds = len(_STRENGTHS) - 1
    return _shares((direction * kinds + strength).ravel(), _DIRECTIONS * kinds)


def _shares(places: np.ndarray, count: int) -> FloatArray:
    """Square roots of the share of each place: a vector of length 1."""
    found = np.bincount(places, minlength=count).astype(np.float32)
    return np.asarray(np.sqrt(found / max(1, len(places))), np.float32)
