"""How a run looks in a terminal: one line a stage with rate and time left, and a summary at the end."""

from __future__ import annotations

import sys
from collections.abc import Callable
from time import monotonic
from types import TracebackType

from pydantic import BaseModel
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from lora_foundry.api import CreateResult
from lora_foundry.domain.recipe import Recipe, help_of
from lora_foundry.domain.run import ProgressEvent
from lora_foundry.families._shared.base import Base
from lora_foundry.families._shared.inspect import BUNDLED
from lora_foundry.pipeline import PIPELINE

PLAIN_PAUSE = 60.0  # seconds between two lines on a stage's progress in a log


class RunDisplay:
    """Progress of a run on a console, silent where `shown` is false: bars in a terminal; elsewhere (a file, a pipe, a
    service's log) a plain line where a stage begins and ends and at most one a minute between."""

    def __init__(self, console: Console, shown: bool, clock: Callable[[], float] = monotonic) -> None:
        self._console, self._shown, self._clock = console, shown, clock
        self._plain = not console.is_terminal or console.is_dumb_terminal
        self._told: dict[str, float] = {}
        self._waited: set[str] = set()
        self._bars: dict[str, TaskID] = {}
        self._progress = Progress(
            TextColumn("{task.fields[stage]:<9}"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]:>12}"),
            TimeRemainingColumn(compact=True, elapsed_when_finished=True),
            TextColumn("{task.fields[message]}"),
            console=console,
            disable=not shown or self._plain,
        )

    def __enter__(self) -> RunDisplay:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars:
            self._progress.stop()

    def waits(self, stage: str, words: str) -> None:
        """Says why a stage does not begin yet."""
        self._waited.add(stage)
        self.say(words)

    def begins(self, stage: str) -> None:
        """Says in a log, and wherever it was waited for, that a stage has begun; a bar comes with its first news."""
        if stage in self._waited or (self._plain and stage not in self._told):
            self._waited.discard(stage)
            self._told[stage] = self._clock()
            self.say(f"{stage}: begins")

    def progress(self, event: ProgressEvent) -> None:
        """Shows news of a stage."""
        if self._plain:
            self.begins(event.stage)
            if self._clock() - self._told[event.stage] >= PLAIN_PAUSE:
                self._told[event.stage] = self._clock()
                loss = f", loss {event.loss:.3f}" if event.loss is not None else ""
                self.say(f"{event.stage}: {event.done} of {event.total}{loss}")
            return
        if not self._bars:  # not earlier, so that refused input prints its one sentence and nothing else
            self._progress.start()
        if event.stage not in self._bars:
            self._bars[event.stage] = self._progress.add_task(
                "", stage=event.stage, rate="", message="", total=None
            )
        bar = self._bars[event.stage]
        task = self._progress.tasks[self._progress.task_ids.index(bar)]
        rate = f"{task.speed:.1f} {event.unit}/s" if task.speed else ""
        loss = f"loss {event.loss:.3f}  " if event.loss is not None else ""
        message = loss + escape(event.message[:60])
        self._progress.update(bar, completed=event.done, total=event.total, rate=rate, message=message)

    def finished(self, stage: str, seconds: float) -> None:
        """Marks a stage as done."""
        if self._plain:
            self.begins(stage)
            self.say(f"{stage}: done in {seconds:.1f} s")
        elif stage in self._bars:
            self._progress.update(self._bars[stage], message=f"done in {seconds:.1f} s", rate="")

    def say(self, text: str) -> None:
        """A line above the bars, or the next one of a log."""
        if self._shown:
            self._console.print(escape(text), soft_wrap=True)


def print_result(console: Console, result: CreateResult) -> None:
    """The summary: what was made, how well it does, how long each stage took."""
    if result.published:
        console.print(f"\n[bold]{result.lora_path}[/bold]", soft_wrap=True)
    else:
        console.print(f"\n[yellow]Not published:[/yellow] {escape(result.verdict)}", soft_wrap=True)
    console.print(f"trigger word{'s' if result.cast else ''}: [bold]{escape(result.trigger)}[/bold]")
    table = Table("", "before", "after", box=None, pad_edge=False)
    scores = result.scores
    table.add_row(scores.measure, _share(scores.identity_before), _share(scores.identity_after))
    if scores.identity_without_trigger is not None:
        table.add_row(
            "appears without the trigger", "", f"{scores.identity_without_trigger:.2f} (lower is better)"
        )
    table.add_row("adherence", _share(scores.adherence_before), _share(scores.adherence_after))
    console.print(table)
    colour = {"good": "green", "usable": "green", "weak": "yellow", "bad": "red"}.get(
        result.assessment.level, "yellow"
    )
    console.print(
        f"[{colour}]{result.assessment.level}[/{colour}]: {escape(result.assessment.reason)}", soft_wrap=True
    )
    if result.assessment.next_step:
        console.print(f"next: {escape(result.assessment.next_step)}", soft_wrap=True)
    times = "  ".join(f"{stage.name} {result.seconds.get(stage.name, 0.0):.1f}" for stage in PIPELINE)
    console.print(f"seconds: {times}  total {sum(result.seconds.values()):.1f}", soft_wrap=True)
    console.print(f"pictures: {escape(str(result.dataset_dir))}", soft_wrap=True)
    console.print(f"report: {escape(str(result.report_path))}", soft_wrap=True)


def print_cast(console: Console, result: CreateResult) -> None:
    """Of several characters in one LoRA: a row a trigger word, a column what its pictures show of each character."""
    if result.cast is None:
        return
    members = result.cast.members
    table = Table("the trigger of", *(f"shows {each.name}" for each in members), box=None, pad_edge=False)
    for called in members:
        row = [called.name]
        for shown in members:
            bleed = result.cast.bleed_of(called.name, shown.name)
            own = f"[bold]{_share(called.identity_after)}[/bold] ({_share(called.identity_before)})"
            other = f"{bleed.share:.2f} ({bleed.chance:.2f})" if bleed else _share(None)
            row.append(own if called is shown else other)
        table.add_row(*row)
    said = (
        "Each trigger should show its own character and nothing of the others; in brackets: without the LoRA."
    )
    console.print(f"\n{said}", soft_wrap=True)
    console.print(table)


def print_use(console: Console, result: CreateResult, base: Base) -> None:
    """How to draw with the LoRA: in ComfyUI and, where one line of diffusers loads the base, in Python."""
    if not result.published or result.lora_path is None:
        return
    words = "one of its trigger words, as in " if result.cast else ""
    console.print(
        f"\nDraw with it in ComfyUI: add the node [bold]Load LoRA[/bold] with {escape(result.lora_path.name)} after the "
        f"checkpoint, and begin the prompt with {words}[bold]{escape(_first_trigger(result))}[/bold].",
        soft_wrap=True,
    )
    if base.name == BUNDLED:
        console.print(
            "ComfyUI does not have the miniature model that this LoRA is for: make one for a real checkpoint, as in [bold]"
            "lora-foundry setup sdxl[/bold] and [bold]lora-foundry create NAME --description WORDS --recipe sdxl[/bold].",
            soft_wrap=True,
        )
    if base.layout == "folder":
        console.print(
            f"Or in Python ({sys.executable}):",
            *python_lines(result, base),
            sep="\n    ",
            soft_wrap=True,
            markup=False,
        )


def python_lines(result: CreateResult, base: Base) -> tuple[str, ...]:
    """A program that draws one picture with the LoRA, for a base that is a diffusers folder."""
    prompt = f"{_first_trigger(result)}, standing, smile, in a forest"
    return (
        "from diffusers import DiffusionPipeline",
        f"pipeline = DiffusionPipeline.from_pretrained({str(base.path)!r})",
        f"pipeline.load_lora_weights({str(result.lora_path)!r})",
        f"pipeline({prompt!r}).images[0].save('picture.png')",
    )


def _first_trigger(result: CreateResult) -> str:
    return result.cast.members[0].trigger if result.cast else result.trigger


def _share(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.2f}"


def print_recipe(console: Console, recipe: Recipe) -> None:
    """Every value of a recipe with what it means."""
    console.print(f"[bold]{escape(recipe.name)}[/bold]: {escape(recipe.description)}\n", soft_wrap=True)
    for name, field in Recipe.model_fields.items():
        value = getattr(recipe, name)
        if not isinstance(value, BaseModel):
            if name not in {"name", "description"}:
                console.print(f"{name} = {value!r}  [dim]{escape(help_of(field))}[/dim]", soft_wrap=True)
            continue
        console.print(f"\n[bold]\\[{name}][/bold]")
        for key, part in type(value).model_fields.items():
            shown = escape(repr(getattr(value, key)))
            console.print(f"  {key} = {shown}  [dim]{escape(help_of(part))}[/dim]", soft_wrap=True)
