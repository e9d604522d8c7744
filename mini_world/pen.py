"""Drawing primitives in figure coordinates, so that one set of shapes serves every framing.

A figure is about 58 units high with the top of the head near 0. The canvas is a four-band picture whose last
band is coverage, drawn at four times the final size and averaged down.
"""

import math

from PIL import Image, ImageDraw

SIZE = 64
SUPERSAMPLING = 4

Color = tuple[int, int, int]
Points = list[tuple[float, float]]


def shade(color: Color, factor: float) -> Color:
    """Darken below one, blend towards white above one."""
    if factor <= 1:
        return tuple(int(band * factor) for band in color)  # type: ignore[return-value]
    return tuple(int(band + (255 - band) * (factor - 1)) for band in color)  # type: ignore[return-value]


class Pen:
    """Draws outlined shapes on a transparent canvas."""

    def __init__(self, scale: float, x: float, y: float) -> None:
        self.canvas = Image.new("CMYK", (SIZE * SUPERSAMPLING, SIZE * SUPERSAMPLING))
        self.draw = ImageDraw.Draw(self.canvas)
        self.scale = scale * SUPERSAMPLING
        self.x, self.y = x * SUPERSAMPLING, y * SUPERSAMPLING
        self.ink_width = 0.72

    def place(self, x: float, y: float) -> tuple[float, float]:
        return self.x + x * self.scale, self.y + y * self.scale

    def ellipse(
        self, x: float, y: float, rx: float, ry: float, fill: Color, ink: Color | None = None
    ) -> None:
        cx, cy = self.place(x, y)
        if ink is not None:
            ax, ay = (rx + self.ink_width) * self.scale, (ry + self.ink_width) * self.scale
            self.draw.ellipse((cx - ax, cy - ay, cx + ax, cy + ay), (*ink, 255))
        ax, ay = rx * self.scale, ry * self.scale
        self.draw.ellipse((cx - ax, cy - ay, cx + ax, cy + ay), (*fill, 255))

    def polygon(self, points: Points, fill: Color, ink: Color | None = None) -> None:
        placed = [self.place(*point) for point in points]
        self.draw.polygon(placed, (*fill, 255))
        if ink is not None:
            width = max(1, round(self.ink_width * 1.4 * self.scale))
            self.draw.line([*placed, placed[0], placed[1]], (*ink, 255), width, joint="curve")

    def line(self, points: Points, width: float, fill: Color, ink: Color | None = None) -> None:
        """A stroke with round ends."""
        placed = [self.place(*point) for point in points]
        if ink is not None:
            self._stroke(placed, width + 2 * self.ink_width, ink)
        self._stroke(placed, width, fill)

    def _stroke(self, placed: Points, width: float, fill: Color) -> None:
        radius = width * self.scale / 2
        self.draw.line(placed, (*fill, 255), max(1, round(2 * radius)), joint="curve")
        for cx, cy in (placed[0], placed[-1]):
            self.draw.ellipse((cx - radius, cy - radius, cx + radius, cy + radius), (*fill, 255))

    def arc(
        self, x: float, y: float, rx: float, ry: float, start: float, end: float, width: float, fill: Color
    ) -> None:
        cx, cy = self.place(x, y)
        ax, ay = rx * self.scale, ry * self.scale
        box = (cx - ax, cy - ay, cx + ax, cy + ay)
        self.draw.arc(box, start, end, (*fill, 255), max(1, round(width * self.scale)))

    def pie(self, x: float, y: float, rx: float, ry: float, start: float, end: float, fill: Color) -> None:
        cx, cy = self.place(x, y)
        ax, ay = rx * self.scale, ry * self.scale
        self.draw.pieslice((cx - ax, cy - ay, cx + ax, cy + ay), start, end, (*fill, 255))


def curve(x: float, y: float, rx: float, ry: float, start: float, end: float, count: int = 14) -> Points:
    """Points along an ellipse, angles in degrees, clockwise from the right as on a screen."""
    step = (end - start) / (count - 1)
    angles = [math.radians(start + step * index) for index in range(count)]
    return [(x + rx * math.cos(angle), y + ry * math.sin(angle)) for angle in angles]
