"""Backgrounds of the miniature world, drawn small because they lie behind the figure."""

import random

import numpy as np
from PIL import Image, ImageDraw

from mini_world.pen import SIZE, Color

PASTELS: tuple[Color, ...] = (
    (150, 200, 232),
    (168, 214, 170),
    (230, 190, 160),
    (196, 176, 226),
    (236, 214, 140),
)
_RAMP = np.linspace(0, 1, SIZE, dtype=np.float32)[:, None, None]


def _tone(source: random.Random, color: Color, spread: int = 10) -> Color:
    return tuple(max(0, min(255, int(band + (source.random() * 2 - 1) * spread))) for band in color)  # type: ignore[return-value]


def draw_backdrop(kind: str, source: random.Random) -> np.ndarray:
    """The background as a float picture of 64 by 64 pixels."""
    if kind == "gradient background":
        return _gradient(source)
    base: Color = (255, 255, 255)
    if kind == "simple background":
        base = _tone(source, PASTELS[int(source.random() * len(PASTELS))], 8)
    picture = Image.new("RGB", (SIZE, SIZE), base)
    painter = _PAINTERS.get(kind)
    if painter:
        painter(ImageDraw.Draw(picture), source)
    return np.asarray(picture, dtype=np.float32)


def _gradient(source: random.Random) -> np.ndarray:
    pairs = (
        ((70, 60, 190), (255, 150, 200)),
        ((20, 150, 190), (250, 240, 150)),
        ((210, 70, 120), (255, 205, 120)),
    )
    top, bottom = pairs[int(source.random() * len(pairs))]
    upper, lower = (np.array(_tone(source, color), dtype=np.float32) for color in (top, bottom))
    return np.broadcast_to(upper + (lower - upper) * _RAMP, (SIZE, SIZE, 3)).copy()


def _indoor(draw: ImageDraw.ImageDraw, source: random.Random) -> None:
    wall, floor = _tone(source, (232, 206, 172)), _tone(source, (158, 104, 66))
    draw.rectangle((0, 0, 64, 64), wall)
    draw.rectangle((0, 46, 64, 64), floor)
    draw.rectangle((0, 44, 64, 46), (250, 240, 224))
    for y in (51, 57):
        draw.line((0, y, 64, y), (120, 76, 48))
    x = int(source.random() * 6) - 2
    draw.rectangle((x, 6, x + 17, 28), (122, 78, 50))
    draw.rectangle((x + 2, 8, x + 15, 26), (150, 210, 245))
    draw.line((x + 8, 8, x + 8, 26), (122, 78, 50), 2)
    draw.line((x + 2, 17, x + 15, 17), (122, 78, 50), 2)
    x = 46 + int(source.random() * 6)
    draw.rectangle((x, 8, x + 18, 44), (124, 80, 52))
    for row in range(3):
        y = 10 + row * 11
        draw.rectangle((x + 2, y, x + 18, y + 8), (84, 52, 36))
        for book in range(5):
            tone = _tone(
                source, ((196, 60, 60), (60, 110, 170), (80, 150, 90), (220, 180, 80))[(book + row) % 4], 20
            )
            draw.rectangle((x + 2 + book * 3, y + 2, x + 4 + book * 3, y + 8), tone)


def _outdoor(draw: ImageDraw.ImageDraw, source: random.Random) -> None:
    draw.rectangle((0, 0, 64, 64), _tone(source, (124, 198, 250)))
    for base in (6, 46):
        x, y = base + int(source.random() * 8), 7 + int(source.random() * 8)
        draw.ellipse((x - 7, y - 2, x + 7, y + 4), (255, 255, 255))
        draw.ellipse((x - 4, y - 5, x + 4, y + 3), (255, 255, 255))
    x = int(source.random() * 16)
    draw.ellipse((x - 30, 36, x + 34, 90), _tone(source, (96, 184, 88)))
    draw.ellipse((x + 16, 40, x + 84, 90), _tone(source, (120, 206, 96)))
    draw.rectangle((0, 53, 64, 64), _tone(source, (134, 210, 96)))
    for index in range(5):
        fx, fy = int(source.random() * 64), 54 + int(source.random() * 9)
        draw.rectangle(
            (fx, fy, fx + 1, fy + 1), ((255, 240, 120), (255, 255, 255), (255, 140, 170))[index % 3]
        )


def _urban(draw: ImageDraw.ImageDraw, source: random.Random) -> None:
    draw.rectangle((0, 0, 64, 64), _tone(source, (176, 190, 210)))
    x = -int(source.random() * 6)
    for index in range(6):
        width, top = 9 + int(source.random() * 6), 4 + int(source.random() * 18)
        tone = _tone(source, ((96, 104, 124), (128, 112, 116), (78, 92, 116))[index % 3], 8)
        draw.rectangle((x, top, x + width, 56), tone)
        for wx in range(x + 2, x + width - 1, 4):
            for wy in range(top + 3, 52, 6):
                draw.rectangle((wx, wy, wx + 1, wy + 2), (255, 232, 140))
        x += width + 1
    draw.rectangle((0, 54, 64, 64), (84, 86, 94))
    for lane in range(0, 64, 14):
        draw.rectangle((lane, 59, lane + 7, 60), (240, 240, 230))


def _nature(draw: ImageDraw.ImageDraw, source: random.Random) -> None:
    draw.rectangle((0, 0, 64, 64), _tone(source, (88, 142, 92)))
    for index in range(5):
        x = index * 14 + int(source.random() * 8) - 4
        draw.rectangle((x, 8, x + 4, 58), _tone(source, (88, 60, 40)))
    for index in range(9):
        x, y = index * 8 + int(source.random() * 6) - 3, int(source.random() * 12)
        draw.ellipse((x - 8, y - 10, x + 8, y + 7), _tone(source, (34, 104, 52), 16))
    draw.rectangle((0, 54, 64, 64), _tone(source, (54, 98, 48)))
    for index in range(7):
        x = index * 10 + int(source.random() * 6)
        draw.polygon(
            [(x - 4, 58), (x - 2, 49), (x, 55), (x + 3, 48), (x + 5, 58)], _tone(source, (40, 128, 56), 14)
        )


def _abstract(draw: ImageDraw.ImageDraw, source: random.Random) -> None:
    tones: tuple[Color, ...] = (
        (255, 96, 110),
        (70, 190, 220),
        (255, 210, 70),
        (130, 96, 220),
        (80, 210, 150),
        (255, 150, 60),
    )
    first = int(source.random() * 6)
    draw.rectangle((0, 0, 64, 64), tones[first])
    for index in range(9):
        x, y = (index % 3) * 24 + source.random() * 16, (index // 3) * 24 + source.random() * 16
        tone, size = tones[(first + 1 + index) % 6], 9 + source.random() * 7
        if index % 2:
            draw.ellipse((x - size, y - size, x + size, y + size), tone)
        else:
            draw.polygon([(x, y - size * 1.3), (x + size * 1.3, y + size), (x - size * 1.3, y + size)], tone)


_PAINTERS = {
    "indoor setting": _indoor,
    "outdoor setting": _outdoor,
    "urban environment": _urban,
    "natural environment": _nature,
    "abstract background": _abstract,
}
