"""The whole pipeline on one page: its stages, in this order, each a package of `lora_foundry.stages`.

Every stage is called as `stage(run, ports, progress) -> result`. It finds what came before in the run's folder, works
there, writes its result last, and continues where it stood when it is run again: an interrupted pipeline is repaired by
running it. The two loops of the pipeline stand here, too: rounds before the set is drawn, and training for longer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Literal, Protocol, cast

from pydantic import AfterValidator, BaseModel, Field, SerializeAsAny

from lora_foundry.domain.run import ProgressEvent, Run
from lora_foundry.errors import did_you_mean
from lora_foundry.ports import Ports, ProgressCallback

if TYPE_CHECKING:
    from lora_foundry.domain.dataset import GenerationMetadata
    from lora_foundry.domain.evaluation import Evaluation


Part = Literal["generation", "tagging", "training"]


class StageFunction(Protocol):
    """What a stage is called as."""

    def __call__(self, run: Run, ports: Ports, progress: ProgressCallback) -> BaseModel: ...


@dataclass(frozen=True)
class Stage:
    """A stage's name, the lane it needs, how long an attempt may take (seconds) and how often it is tried again. An
    attempt that runs out of time goes on where it stood, and costs no retry where it got further. part: which of the
    three kinds of LoRA task of the old programs it is done by."""

    name: str
    part: Part
    lane: Literal["cpu", "gpu"]
    timeout: int
    retries: int

    def load(self) -> StageFunction:
        """The stage's function; imported now, so that a command line which runs none starts fast."""
        function = _LOOPS.get(self.name)
        if function is None:
            function = cast(StageFunction, import_module(f"lora_foundry.stages.{self.name}.step").run)
        return partial(for_each_member, function) if self.name in _OF_EACH_MEMBER else function


PIPELINE: tuple[Stage, ...] = (
    # rounds, then a planned picture for every shot
    Stage("generate", "generation", lane="gpu", timeout=3600, retries=2),
    # what is bad is made again for the same shot
    Stage("curate", "generation", lane="gpu", timeout=3600, retries=2),
    # a text file beside every picture
    Stage("caption", "tagging", lane="cpu", timeout=300, retries=2),
    # the LoRA
    Stage("train", "training", lane="gpu", timeout=7200, retries=1),
    # same seeds without and with it; trained longer if weak
    Stage("evaluate", "training", lane="gpu", timeout=3600, retries=2),
    # proven, then copied to where it is used
    Stage("publish", "training", lane="gpu", timeout=300, retries=2),
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
    from lora_foundry.stages.evaluate import cast, step
    from lora_foundry.stages.train import step as train

    section = run.recipe.evaluate
    measure = cast.run if run.members else step.run
    while True:
        scores = measure(run, ports, progress)
        found = scores.identity_of(scores.after)
        if found is None or found >= section.min_identity or not section.more_training:
            return scores
        if not train.ask_for_more(run, ports, section.more_training):
            return scores
        message = f"identity {found:.2f} < {section.min_identity:g}: training longer"
        progress(ProgressEvent(stage="evaluate", done=0, total=1, message=message))
        ports.generator.close()  # a small GPU does not hold its base and the trainer's
        train.run(run, ports, lambda event: progress(event.model_copy(update={"stage": "evaluate"})))


class MemberResults(BaseModel):
    """What a stage left for each member of a cast, by name."""

    members: dict[str, SerializeAsAny[BaseModel]]


def for_each_member(stage: StageFunction, run: Run, ports: Ports, progress: ProgressCallback) -> BaseModel:
    """A stage that works on one character's set: of a cast it works on one after another."""
    if not run.members:
        return stage(run, ports, progress)
    results: dict[str, BaseModel] = {}
    for member in run.member_runs:
        name = member.character.name

        def tell(event: ProgressEvent, name: str = name) -> None:
            message = f"{name}: {event.message}" if event.message else name
            progress(event.model_copy(update={"message": message}))

        results[name] = stage(member, ports, tell)
    return MemberResults(members=results)


_LOOPS: dict[str, StageFunction] = {"generate": generate, "evaluate": evaluate}
_OF_EACH_MEMBER = {"generate", "curate", "caption"}


STAGE_NAMES = tuple(stage.name for stage in PIPELINE)


def stages_of(part: str) -> tuple[str, ...]:
    """The names of the stages that a kind of LoRA task does, in order; none for another word."""
    return tuple(stage.name for stage in PIPELINE if stage.part == part)


def check_stage(name: str) -> str:
    """The name of a stage. Raises ValueError, with the nearest name, for another word."""
    if name not in STAGE_NAMES:
        raise ValueError(f"{name[:80]!r} is no stage; {did_you_mean(name, STAGE_NAMES)}")
    return name


# A stage's name as it comes from outside.
StageName = Annotated[str, AfterValidator(check_stage), Field(json_schema_extra={"enum": list(STAGE_NAMES)})]


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
