"""`create` and `demo`: a pipeline is put into the task table, and shown until it has ended."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

import typer
from rich.console import Console
from rich.markup import escape

from lora_foundry.api import CreateResult, Foundry, check_writable, result_of
from lora_foundry.cli.cast import AskedCast, read_cast
from lora_foundry.cli.tasks import settings_of, with_store
from lora_foundry.composition import notifier_of
from lora_foundry.domain.cast import Member
from lora_foundry.domain.character import Character, split_tags
from lora_foundry.domain.recipe import setting_values
from lora_foundry.domain.run import Again, Run
from lora_foundry.domain.triage import Triage
from lora_foundry.errors import BackendError, FoundryError, InputError, error_of
from lora_foundry.families._shared.inspect import recipe_base
from lora_foundry.files.importing import Imported, take_all_pictures, take_pictures
from lora_foundry.files.paths import RunPaths
from lora_foundry.files.storage import read_model, write_bytes
from lora_foundry.files.versions import folder_of
from lora_foundry.remote.access import bring
from lora_foundry.settings import Settings

if TYPE_CHECKING:
    from lora_foundry.tasks.pipelines import Pipeline, PipelineRequest, StageState
    from lora_foundry.tasks.store import TaskStore

CTRL_C_SECONDS = 10.0  # to come to a safe place
_SAFE_PLACES = {
    "generate": "the picture being drawn is finished first",
    "train": "what has been trained is saved first",
}
_CHOICES = """\
  n: a new version, the old one stays
  c: go on in it; other picture settings draw the set again
  r: delete the old one and begin anew"""
_out = Console(highlight=False)
_err = Console(stderr=True, highlight=False)


@dataclass(frozen=True)
class Wanted:
    """What the command line asked for, checked as far as it can be without a recipe."""

    character: Character
    recipe: str | None
    changes: tuple[str, ...]
    output_name: str | None
    again: Again | None = None
    pictures: tuple[Path, ...] = ()
    cast: AskedCast | None = None

    @classmethod
    def of_cast(
        cls,
        file: Path,
        alone: bool,
        recipe: str | None,
        settings: Sequence[str],
        seed: int | None,
        output_name: str | None,
        again: Again | None,
    ) -> Wanted:
        """From a cast's file, whose name is the LoRA's. alone: whether a character was told beside it. Raises InputError."""
        if alone:
            raise InputError(
                "A cast's file names its characters; give nothing but --cast FILE and the settings beside it."
            )
        cast = read_cast(file)
        changes = (*settings, *(() if seed is None else (f"seed={seed}",)))
        return cls(Character(name=cast.name), recipe, changes, output_name, again, cast=cast)

    @classmethod
    def of(
        cls,
        name: str | None,
        description: str,
        tags: str = "",
        trigger: str = "",
        recipe: str | None = None,
        settings: Sequence[str] = (),
        seed: int | None = None,
        output_name: str | None = None,
        reference: Path | None = None,
        again: Again | None = None,
        pictures: Sequence[Path] = (),
    ) -> Wanted:
        """From the options of `create`. Raises InputError."""
        if name is None:
            raise InputError(
                'Give the character a name, as in: lora-foundry create "Elara" -d "...", or a cast with --cast FILE.'
            )
        path = None if reference is None else reference.expanduser().absolute()
        if path is not None and not path.is_file():
            raise InputError(f"There is no reference image {path}.")
        character = Character(
            name=name,
            description=description,
            trigger=trigger,
            tags=split_tags(tags),
            reference_image=path,
        )
        changes = (*settings, *(() if seed is None else (f"seed={seed}",)))
        own = tuple(source.expanduser().absolute() for source in pictures)
        return cls(character, recipe, changes, output_name, again, own)

    def prepare(self, settings: Settings) -> tuple[Wanted, Run]:
        """The run, and what was asked for with the source of the pictures settled: where some are given and the recipe
        leaves it open, these alone are trained on. Raises PermanentError kinds."""
        from lora_foundry.recipe_files import load_recipe

        wanted = self
        recipe = load_recipe(self.recipe or settings.recipe, self.changes, settings.recipe_folders)
        if self.pictures and recipe.dataset.source in ("auto", "own"):
            wanted = replace(self, changes=(*self.changes, "dataset.source=own"))
        run, _ = Foundry(settings=settings).prepare(
            wanted.character,
            wanted.recipe,
            settings=wanted.changes,
            output_name=wanted.output_name,
            members=self.cast.members if self.cast else (),
        )
        return wanted, run

    def take_pictures(self, run: Run, again: Again) -> Imported | None:
        """Copies the own pictures into the run's set, where its workers find them. Raises InputError, StorageError."""
        paths = RunPaths(run.dataset_dir, run.character.slug)
        if self.cast is not None and self.cast.pictures:
            return take_all_pictures(
                [
                    (self.cast.pictures[each.character.name], RunPaths(each.dataset_dir, each.character.slug))
                    for each in run.member_runs
                    if each.character.name in self.cast.pictures
                ],
                paths,
                run,
                again,
            )
        return take_pictures(self.pictures, paths, run, again) if self.pictures else None

    def request(self, settings: Settings) -> PipelineRequest:
        """The same for the task table, with nothing in it that only this machine could read."""
        from lora_foundry.files.safe_paths import remember
        from lora_foundry.recipe_files import load_recipe, portable_recipe
        from lora_foundry.tasks.pipelines import PipelineRequest

        given = self.character.reference_image
        recipe = load_recipe(self.recipe or settings.recipe, self.changes, settings.recipe_folders)
        absolute = remember(recipe.model_dump(), settings)
        return PipelineRequest(
            character=self.character.model_copy(update={"reference_image": None}),
            recipe=portable_recipe(self.recipe or settings.recipe, settings.recipe_folders),
            settings=setting_values((*self.changes, *absolute)),
            output_name=self.output_name,
            reference_image=None if given is None else str(_kept(settings, given)),
            again=self.again or "new",
            members=tuple(_portable(settings, each) for each in self.cast.members) if self.cast else (),
        )


def _portable(settings: Settings, member: Member) -> Member:
    """A member of a cast with its reference image where workers may read it."""
    character = member.character
    if character.reference_image is None:
        return member
    kept = _kept(settings, character.reference_image)
    return member.model_copy(update={"character": character.model_copy(update={"reference_image": kept})})


def _kept(settings: Settings, picture: Path) -> Path:
    """A copy of the reference image where workers may read it, named by its content."""
    try:
        content = picture.read_bytes()
    except OSError as error:
        raise InputError(f"The reference image {picture} cannot be read ({error.strerror}).") from error
    name = f"{hashlib.sha256(content).hexdigest()[:24]}{picture.suffix.lower()}"
    place = settings.home.expanduser().absolute() / "references" / name
    return place if place.is_file() else write_bytes(place, content)


def _warn(run: Run) -> None:
    for caution in run.cautions:
        _err.print(f"[yellow]Warning:[/yellow] {escape(caution)}", soft_wrap=True)


def submit_only(wanted: Wanted, home: Path | None, as_json: bool) -> None:
    """Puts the rows into the table, after the same checks as for a run here."""
    settings = settings_of(home)
    wanted, run = wanted.prepare(settings)
    _warn(run)
    request = decided(wanted, settings, asks=False)
    taken = wanted.take_pictures(run, request.again)

    async def put(store: TaskStore) -> tuple[Pipeline, bool]:
        from lora_foundry.tasks.pipelines import submit, unfinished

        there = await unfinished(store, request)
        return there or await submit(store, settings, request), there is not None

    pipeline, there = with_store(settings, put)
    tasks = [stage.task_id for stage in pipeline.stages]
    if as_json:
        print(json.dumps({"status": pipeline.status, "pipeline": pipeline.id, "tasks": tasks}))
    else:
        for words in taken.notes() if taken is not None else ():
            _err.print(escape(words), soft_wrap=True)
        numbers = ", ".join(map(str, tasks))
        said = "are in the table already, and nothing was added" if there else "are in the table"
        _out.print(f"Tasks {numbers} {said}; `lora-foundry worker` runs them.")


def decided(wanted: Wanted, settings: Settings, asks: bool) -> PipelineRequest:
    """The request, and what becomes of a character of that name that was asked for otherwise: said, and asked where a
    person can answer. Programs say it with a flag; without one, the earlier is kept as a version."""
    from lora_foundry.tasks.pipelines import another_run

    request = wanted.request(settings)
    earlier = another_run(settings, request)
    if earlier is None or wanted.again is not None:
        return request
    kept = RunPaths(earlier.dataset_dir, "").version(earlier.version)
    _err.print(
        f"{escape(earlier.character.name)} has been made before, with other words or settings (version "
        f"{earlier.version}). A new version keeps it whole in {escape(str(kept))} and takes over what still fits.",
        soft_wrap=True,
    )
    again: Again = "new"
    if asks and sys.stdin.isatty() and sys.stderr.isatty():
        _err.print(_CHOICES, soft_wrap=True)
        choices = {"n": "new", "c": "continue", "r": "replace"}
        said = typer.prompt("New version, continue in it, or replace it? [n/c/r]", default="n", err=True)
        again = cast(Again, choices.get(said.strip().lower()[:1], "new"))
    return request.model_copy(update={"again": again})


def findings_of(run: Run) -> Iterator[str]:
    """What was found of the own pictures of a run, of each member of a cast, and what to do about it; nothing where
    nothing was found or the run is not on this host."""
    for member in run.member_runs:
        paths = RunPaths(member.dataset_dir, member.character.slug)
        triage = read_model(paths.triage, Triage) or Triage()
        found = triage.summary(puts_trigger=run.recipe.caption.kept == "with_trigger")
        if found:
            whose = f"{member.character.name}: " if run.members else ""
            yield (
                f"{whose}{found} See {paths.triage_report}. To leave some out, stop with Ctrl-C, exclude them on the "
                f"dashboard (or take the files out of {paths.images} and of where they came from), and run the same "
                "command again."
            )


def copied_words(taken: Imported, folder: Path) -> str:
    """What became of the pictures that were given."""
    words = f"{taken.copied} {'picture' if taken.copied == 1 else 'pictures'} copied into {folder}"
    return words + (
        f", {taken.present} {'was' if taken.present == 1 else 'were'} there already" if taken.present else ""
    )


def _stopping(stage: str) -> None:
    """Said at once on Ctrl-C, since the end may take a while."""
    place = _SAFE_PLACES.get(stage)
    waits = f"; {place}, for at most {CTRL_C_SECONDS:.0f} seconds" if place else ""
    _err.print(f"Stopping{waits} ...")


def create_here(
    wanted: Wanted, home: Path | None, as_json: bool, quiet: bool, opening: str | None = None
) -> None:
    """Puts the rows into the table and stays until the LoRA is published. opening: said first, with `{pictures}` in it for
    the folder where pictures appear. Raises what the failed stage raised."""
    from lora_foundry.cli.terminal import RunDisplay, print_cast, print_result, print_use

    settings = settings_of(home)
    wanted, run = wanted.prepare(settings)
    _warn(run)
    check_writable(settings.home.expanduser().absolute(), run.dataset_dir, run.lora_dir)
    request = decided(wanted, settings, asks=not (as_json or quiet))
    taken = wanted.take_pictures(run, request.again)
    with RunDisplay(_err, shown=not (as_json or quiet)) as display:
        if opening is not None:
            display.say(opening.replace("{pictures}", str(run.dataset_dir / "images")))
        if taken is not None:
            display.say(copied_words(taken, run.dataset_dir))
            for words in taken.notes():
                display.say(words)

        def trouble(stage: StageState) -> None:
            display.say(f"{stage.stage}: {stage.error} It is tried again.")

        def finished(stage: str, seconds: float) -> None:
            display.finished(stage, seconds)
            if stage == "curate":
                for words in findings_of(run):
                    display.say(words)

        async def work(store: TaskStore) -> Pipeline:
            from lora_foundry.stage_job import ENTRY, PRELOAD
            from lora_foundry.tasks.foreground import Watcher, create
            from lora_foundry.tasks.recovery import Timing
            from lora_foundry.tasks.worker import WorkerOptions

            timing, notifier = Timing(grace=CTRL_C_SECONDS, queue=0.2), notifier_of(settings)
            options = WorkerOptions(ENTRY, timing=timing, preload=PRELOAD, notifier=notifier)
            stopping = (lambda stage: None) if as_json or quiet else _stopping
            watcher = Watcher(display.progress, finished, trouble, display.begins, stopping, display.waits)
            return await create(store, settings, request, options, watcher)

        pipeline = with_store(settings, work)
    if pipeline.status != "completed":
        raise _error_of(pipeline)
    bring(settings, run.character.name, pipeline.version)  # where another host did the work
    run = run.model_copy(update={"dataset_dir": folder_of(run.dataset_dir, pipeline.version)})
    result: CreateResult = result_of(run, {stage.stage: stage.seconds or 0.0 for stage in pipeline.stages})
    if as_json:
        print(result.model_dump_json())
    else:
        print_result(_out, result)
        print_cast(_out, result)
        print_use(_out, result, recipe_base(run.recipe, settings.model_folders))


def _error_of(pipeline: Pipeline) -> FoundryError:
    """The error that a stage's process raised, as far as its row tells."""
    failed = next((stage for stage in pipeline.stages if stage.status == "failed"), None)
    if failed is None:
        return BackendError("The pipeline was cancelled. Run the same command to go on.")
    return error_of(failed.kind or "", failed.error or "The stage failed without a word.")
