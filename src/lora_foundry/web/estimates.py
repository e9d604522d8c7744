"""How long stages take, from those that are over: the time left is said only where something is known."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from math import log
from statistics import median
from typing import NamedTuple

from lora_foundry.tasks.pipelines import Pipeline, StageState

_LEAST_SHARE = 0.02  # of a stage, below which its rate says nothing
_ONCE = ("publish",)  # what is done once, however many characters one LoRA draws


class Estimates:
    """Median seconds of a recipe's stages, learned from completed ones, by how many characters the LoRA draws."""

    def __init__(self) -> None:
        self._seconds: dict[tuple[str | None, int, str], float] = {}

    def learn(self, pipelines: Iterable[Pipeline]) -> None:
        """Takes the times of all completed stages in the place of what was known."""
        found: dict[tuple[str | None, int, str], list[float]] = {}
        for pipeline in pipelines:
            for stage in pipeline.stages:
                taken = seconds_of(stage)
                if stage.status == "completed" and taken is not None:
                    found.setdefault((pipeline.recipe, characters_of(pipeline), stage.stage), []).append(
                        taken
                    )
        self._seconds |= {key: median(values) for key, values in found.items()}

    def usual(self, recipe: str | None, stage: str, characters: int = 1) -> float | None:
        """What a stage takes for so many characters: measured for as many, else reckoned from the nearest number."""
        known = {
            count: value
            for (name, count, each), value in self._seconds.items()
            if (name, each) == (recipe, stage)
        }
        if not known:
            return None
        nearest = min(known, key=lambda count: abs(log(count / characters)))
        return known[nearest] * (1 if stage in _ONCE else characters / nearest)

    def left(self, pipeline: Pipeline, stage: StageState, now: datetime) -> float | None:
        """Seconds until a stage's end: by its own rate if it runs, else by what it usually takes."""
        usual = self.usual(pipeline.recipe, stage.stage, characters_of(pipeline))
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


class Size(NamedTuple):
    """How much work a run is: characters that its LoRA draws; whether all pictures are a person's own; pictures and
    training steps a character."""

    characters: int
    own: bool
    images: int
    steps: int


class Past(NamedTuple):
    """A completed run."""

    pipeline: Pipeline
    size: Size


class Expectation(NamedTuple):
    """What a run will take: seconds; `share`: how much more of everything but the LoRA than each of `runs` had, the
    completed ones that this was told from."""

    seconds: float
    share: float
    runs: tuple[Past, ...]

    def measured(self, wanted: Size) -> bool:
        """Whether runs of just this size were there; else it is reckoned from others. How many a person's own pictures
        are, no size tells."""
        return not wanted.own and all(past.size == wanted for past in self.runs)


def expect(past: Sequence[Past], wanted: Size) -> Expectation | None:
    """What a run of this size takes, from those completed runs that come nearest to it; None where there are none. Of own
    pictures nothing follows for drawn ones."""
    past = [each for each in past if wanted.own or not each.size.own]
    if not past:
        return None
    nearest = min(_distance(each.size, wanted) for each in past)
    near = tuple(each for each in past if _distance(each.size, wanted) == nearest)
    return Expectation(
        seconds=median(
            sum(_seconds_for(stage, each.size, wanted) for stage in each.pipeline.stages) for each in near
        ),
        share=wanted.characters / near[0].size.characters,
        runs=near,
    )


def _distance(size: Size, wanted: Size) -> float:
    """How unlike two runs are: own pictures tell little of drawn ones, a factor of steps as much as one of characters."""
    far = 10.0 if size.own != wanted.own else 0.0
    pairs = zip(
        (size.characters, size.images, size.steps),
        (wanted.characters, wanted.images, wanted.steps),
        strict=True,
    )
    return far + sum(abs(log(max(1, ours) / max(1, theirs))) for ours, theirs in pairs)


def _seconds_for(stage: StageState, size: Size, wanted: Size) -> float:
    """What a stage of one run would take in another: training goes by its steps, drawing by the pictures."""
    taken = stage.seconds or seconds_of(stage) or 0.0
    if stage.stage in _ONCE:
        return taken
    taken *= wanted.characters / size.characters
    if stage.stage == "train":
        return taken * max(1, wanted.steps) / max(1, size.steps)
    if stage.stage in ("generate", "curate", "caption") and not wanted.own and not size.own:
        return taken * max(1, wanted.images) / max(1, size.images)
    return 0.0 if stage.stage == "generate" and wanted.own and not size.own else taken


def characters_of(pipeline: Pipeline) -> int:
    """How many characters the LoRA draws."""
    return max(1, len(pipeline.members))


def is_own(pipeline: Pipeline) -> bool:
    """Whether a person's own pictures are all that it was made from."""
    dataset = pipeline.settings.get("dataset")
    return isinstance(dataset, dict) and dataset.get("source") == "own"
