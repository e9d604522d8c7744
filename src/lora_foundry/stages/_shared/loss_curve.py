"""The training loss as a small drawing: single steps are noise, so a running mean is drawn over them."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

WIDTH, HEIGHT = 720.0, 220.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 52.0, 8.0, 10.0, 26.0
_POINTS = 300
_LINES = 4
_WINDOW = 0.05  # of all steps


class Tick(NamedTuple):
    """A label at a height of the drawing."""

    y: float
    label: str


class LossCurve(NamedTuple):
    """Coordinates for an SVG of WIDTH x HEIGHT: the loss as it was logged, its running mean, and the axes."""

    raw: str
    smooth: str
    ticks: tuple[Tick, ...]
    left: float
    right: float
    bottom: float
    first: int
    last: int


def read_losses(path: Path) -> list[tuple[int, float]]:
    """(step, loss) of every row of loss.csv; none where there is no such file."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return [(int(row["step"]), float(row["loss"])) for row in csv.DictReader(file)]


def draw_loss(losses: Sequence[tuple[int, float]]) -> LossCurve | None:
    """The curve; None for fewer than two steps. Long runs are thinned to a few hundred points by
    averaging."""
    if len(losses) < 2:
        return None
    points = _thin(losses)
    smooth = _running_mean(points, max(2, round(len(points) * _WINDOW)))
    low, high = min(loss for _, loss in points), max(loss for _, loss in points)
    first, last = points[0][0], points[-1][0]
    span, steps = max(high - low, 1e-9), max(last - first, 1)
    inner_width, inner_height = WIDTH - _LEFT - _RIGHT, HEIGHT - _TOP - _BOTTOM

    def height(loss: float) -> float:
        return round(_TOP + (high - loss) / span * inner_height, 1)

    def line(values: Sequence[tuple[int, float]]) -> str:
        return " ".join(
            f"{_LEFT + (step - first) / steps * inner_width:.1f},{height(loss)}" for step, loss in values
        )

    levels = [low + span * index / (_LINES - 1) for index in range(_LINES)]
    return LossCurve(
        raw=line(points),
        smooth=line(smooth),
        ticks=tuple(Tick(height(level), f"{level:.3g}") for level in levels),
        left=_LEFT,
        right=WIDTH - _RIGHT,
        bottom=HEIGHT - _BOTTOM,
        first=first,
        last=last,
    )


def draw_curve(points: Sequence[tuple[int, float]]) -> LossCurve | None:
    """A score over steps, as it is; None for fewer than two points."""
    ordered = sorted(points)
    curve = draw_loss(ordered)
    return None if curve is None else curve._replace(smooth=curve.raw)


def _thin(losses: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    group = -(-len(losses) // _POINTS)
    chunks = [losses[start : start + group] for start in range(0, len(losses), group)]
    return [(chunk[-1][0], sum(loss for _, loss in chunk) / len(chunk)) for chunk in chunks]


def _running_mean(points: Sequence[tuple[int, float]], window: int) -> list[tuple[int, float]]:
    """Centred, narrower at both ends."""
    result = []
    for place, (step, _) in enumerate(points):
        near = points[max(0, place - window) : place + window + 1]
        result.append((step, sum(loss for _, loss in near) / len(near)))
    return result
