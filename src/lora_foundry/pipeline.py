"""The whole pipeline on one page: six stages, in this order, each a package of `lora_foundry.stages`.

Every stage is called as `stage(run, ports, progress) -> result`. It finds what came before in the run's folder, works
there, writes its result last, and continues where it stood when it is run again: an interrupted pipeline is repaired by
running it. The two loops of the pipeline stand here, too: rounds before the set is drawn, and training for longer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from time import perf_counter
from typing import TYPE_CHECKING, Literal, Protocol, cast

from pydantic import BaseModel

from lora_foundry.domain.run import ProgressEvent, Run, StageName
from lora_foundry.ports import Ports, ProgressCallback

if TYPE_CHECKING:
    from lora_foundry.domain.dataset import GenerationMetadata
    from lora_foundry.domain.evaluation import Evaluation


class StageFunction(Protocol):
    """What a stage is called as."""

    def __call__(self, run: Run, ports: Ports, progress: ProgressCallback) -> BaseModel: ...


@dataclass(frozen=True)
class Stage:
    """A stage's name, the lane it needs, how long an attempt may take (seconds) and how often it is tried again. An
    attempt that runs out of time goes on where it stood, and costs no retry where it got further."""

    name: StageName
    lane: Literal["cpu", "gpu"]
    timeout: int
    retries: int

    def load(self) -> StageFunction:
        """The stage's function; imported now, so that a command line which runs none starts fast."""
        if self.name in _LOOPS:
            return _LOOPS[self.name]
        return cast(StageFunction, import_module(f"lora_foundry.stages.{self.name}.step").run)


PIPELINE: tuple[Stage, ...] = (
    Stage("generate", lane="gpu", timeout=3600, retries=2),  # rounds, then a planned picture for every shot
    Stage("curate", lane="gpu", timeout=3600, retries=2),  # what is bad is made again for the same shot
    Stage("caption", lane="cpu", timeout=300, retries=2),  # a text file beside every picture
    Stage("train", lane="gpu", timeout=7200, retries=1),  # the LoRA
    Stage(
        "evaluate", lane="gpu", timeout=3600, retries=2
    ),  # same seeds without and with it; trained longer if weak
    Stage("publish", lane="gpu", timeout=300, retries=2),  # proven, then copied to where it is used
)


def generate(run: Run, ports: Ports, progress: ProgressCallback) -> GenerationMetadata:
    """The pictures of the set. Where the recipe asks for rounds, each draws a smaller set and leaves the next one a
    fuller description or a short LoRA, until that no longer helps."""
    from lora_foundry.stages._shared.drawing import start_context
    from lora_foundry.stages.generate import rounds, step

    if not run.draws:
        return step.take_own(run, progress)
    context = start_context(run, ports)
    while len(context.rounds) < run.recipe.generate.rounds - 1:
        done = rounds.run_round(run, ports, context, progress)
        context = context.after(done, rounds.lora_of(run, done), run.character.trigger)
        if not done.lora and not done.completed:
            break
    return step.run(run, ports, progress, context)


def evaluate(run: Run, ports: Ports, progress: ProgressCallback) -> Evaluation:
    """The scores of the LoRA. Where the recipe asks for more identity than was found, and allows it, the training goes
    on for half as many steps more, and what it leaves is measured again."""
    from lora_foundry.stages.evaluate import step
    from lora_foundry.stages.train import step as train

    section = run.recipe.evaluate
    while True:
        scores = step.run(run, ports, progress)
        found = scores.identity_of(scores.after)
        if found is None or found >= section.min_identity or not section.more_training:
            return scores
        if not train.ask_for_more(run, ports, section.more_training):
            return scores
        message = f"identity {found:.2f} < {section.min_identity:g}: training longer"
        progress(ProgressEvent(stage="evaluate", done=0, total=1, message=message))
        ports.generator.close()  # a small GPU does not hold its base and the trainer's
        train.run(run, ports, lambda event: progress(event.model_copy(update={"stage": "evaluate"})))


_LOOPS: dict[str, StageFunction] = {"generate": generate, "evaluate": evaluate}


STAGE_NAMES = tuple(stage.name for stage in PIPELINE)


def run_pipeline(
    run: Run,
    ports: Ports,
    progress: ProgressCallback,
    finished: Callable[[Stage, BaseModel, float], None] = lambda stage, result, seconds: None,
    *,
    begins: Callable[[Stage], None] = lambda stage: None,
    names: Sequence[str] = STAGE_NAMES,
) -> dict[str, float]:
    """Runs stages in this process, one after another, and returns the seconds that each took: all of them for the
    Python API, those of a task for its child process."""
    seconds: dict[str, float] = {}
    for stage in (stage for stage in PIPELINE if stage.name in names):
        begins(stage)
        started = perf_counter()
        result = stage.load()(run, ports, progress)
        seconds[stage.name] = round(perf_counter() - started, 3)
        finished(stage, result, seconds[stage.name])
    return seconds
