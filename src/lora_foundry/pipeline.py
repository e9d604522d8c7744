"""The whole pipeline on one page: six stages, in this order, each a module of `lora_foundry.stages`.

Every stage is `run(run, ports, progress) -> result`. It finds what came before in the run's folder, works there, writes
its result last, and continues where it stood when it is run again: an interrupted pipeline is mended by running it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from time import perf_counter
from typing import Literal, Protocol, cast

from pydantic import BaseModel

from lora_foundry.domain.run import Run, StageName
from lora_foundry.ports import Ports, ProgressCallback


class StageFunction(Protocol):
    """What a stage module's `run` looks like."""

    def __call__(self, run: Run, ports: Ports, progress: ProgressCallback) -> BaseModel: ...


@dataclass(frozen=True)
class Stage:
    """A stage's name, the lane it needs, how long an attempt may take (seconds) and how often it is tried again."""

    name: StageName
    lane: Literal["cpu", "gpu"]
    timeout: int
    retries: int

    def load(self) -> StageFunction:
        return cast(StageFunction, import_module(f"lora_foundry.stages.{self.name}.step").run)


PIPELINE: tuple[Stage, ...] = (
    Stage("generate", lane="gpu", timeout=3600, retries=2),  # a planned, seeded picture for every shot
    Stage(
        "curate", lane="gpu", timeout=3600, retries=2
    ),  # what fails a check is made again for the same shot
    Stage("caption", lane="cpu", timeout=300, retries=2),  # a .txt beside every picture
    Stage("train", lane="gpu", timeout=7200, retries=1),  # the LoRA
    Stage(
        "evaluate", lane="gpu", timeout=3600, retries=2
    ),  # same seeds with and without it, measured; the report
    Stage("publish", lane="gpu", timeout=300, retries=2),  # proven, then copied to where it is used
)


def run_pipeline(
    run: Run,
    ports: Ports,
    progress: ProgressCallback,
    finished: Callable[[Stage, BaseModel, float], None] = lambda stage, result, seconds: None,
) -> dict[str, float]:
    """Runs all stages in this process, one after another, and returns the seconds that each took."""
    seconds: dict[str, float] = {}
    for stage in PIPELINE:
        started = perf_counter()
        result = stage.load()(run, ports, progress)
        seconds[stage.name] = round(perf_counter() - started, 3)
        finished(stage, result, seconds[stage.name])
    return seconds
