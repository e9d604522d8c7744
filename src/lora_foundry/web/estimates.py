"""How long stages take, from those that are over: the time left is said only where something is known."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from statistics import median
from typing import NamedTuple

from lora_foundry.tasks.pipelines import Pipeline, StageState

_LEAST_SHARE = 0.02  # of a stage, below which its rate says nothing


class Estimates:
    """Median seconds of a recipe's stages, learned from completed ones."""

    def __init__(self) -> None:
        self._seconds: dict[tuple[str | None, str], float] = {}

    def learn(self, pipelines: Iterable[Pipeline]) -> None:
        """Takes the times of all completed stages in the place of what was known."""
        found: dict[tuple[str | None, str], list[float]] = {}
        for pipeline in pipelines:
            for stage in pipeline.stages:
                taken = seconds_of(stage)
                if stage.status == "completed" and taken is not None:
                    found.setdefault((pipeline.recipe, stage.stage), []).append(taken)
        self._seconds |= {key: median(values) for key, values in found.items()}

    def usual(self, recipe: str | None, stage: str) -> float | None:
        return self._seconds.get((recipe, stage))

    def left(self, recipe: str | None, stage: StageState, now: datetime) -> float | None:
        """Seconds until a stage's end: by its own rate if it runs, else by what it usually takes."""
        usual = self.usual(recipe, stage.stage)
        if stage.status != "running":
            return usual
        taken, share = seconds_of(stage, now), share_of(stage)
        if taken is None:
            return usual
        if share >= _LEAST_SHARE:
            return max(0.0, taken / share - taken)
        return None if usual is None else max(0.0, usual - taken)


def share_of(stage: StageState) -> float:
    """How much of a stage is done, 0 to 1."""
    if stage.status == "completed":
        return 1.0
    progress = stage.progress or {}
    done, total = progress.get("done"), progress.get("total")
    if not isinstance(done, int) or not isinstance(total, int) or total <= 0:
        return 0.0
    return min(1.0, max(0.0, done / total))


def seconds_of(stage: StageState, now: datetime | None = None) -> float | None:
    """How long a stage's last attempt took, or has taken until `now` (naive UTC, as the table's times)."""
    end = stage.completed_at or now
    if stage.started_at is None or end is None:
        return None
    return max(0.0, (end - stage.started_at).total_seconds())


def utc_now() -> datetime:
    """Now, as the table's columns hold times."""
    return datetime.now(UTC).replace(tzinfo=None)


class Took(NamedTuple):
    """A completed run and the seconds that its stages took together."""

    pipeline: Pipeline
    seconds: float


def took(pipeline: Pipeline) -> float | None:
    """The seconds that a run took, without its waiting; None for one that is not completed."""
    if pipeline.status != "completed":
        return None
    times = [stage.seconds or seconds_of(stage) or 0.0 for stage in pipeline.stages]
    return sum(times) or None
