"""The public Python API.

foundry = Foundry()
result = foundry.create(Character(name="Elara", description="1girl, brown hair, armor"), recipe="mini")
result.lora_path
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from lora_foundry.announcements import of_failure, of_finish
from lora_foundry.composition import check_ahead, do_stages, notifier_of
from lora_foundry.domain.assessment import Assessment
from lora_foundry.domain.cast import Member
from lora_foundry.domain.character import Character, file_name
from lora_foundry.domain.evaluation import CastScores, Evaluation, Scores
from lora_foundry.domain.news import News
from lora_foundry.domain.publication import Publication
from lora_foundry.domain.recipe import Recipe
from lora_foundry.domain.run import Again, ProgressEvent, Run
from lora_foundry.errors import FoundryError, InputError
from lora_foundry.failures import as_ours
from lora_foundry.families._shared.base import Base
from lora_foundry.families._shared.inspect import recipe_base
from lora_foundry.files.importing import import_pictures
from lora_foundry.files.locks import FolderLock, claim
from lora_foundry.files.paths import RunPaths
from lora_foundry.files.storage import make_folder, read_model, storage_errors
from lora_foundry.files.versions import numbered
from lora_foundry.pipeline import Stage
from lora_foundry.ports import (
    Notifier,
    ProgressCallback,
)
from lora_foundry.recipe_files import load_recipe
from lora_foundry.settings import Settings

logger = logging.getLogger(__name__)


class CreateResult(BaseModel):
    """What a run left behind."""

    model_config = ConfigDict(frozen=True)

    status: Literal["completed"]
    published: bool
    verdict: str
    lora_path: Path | None
    report_path: Path
    dataset_dir: Path
    trigger: str
    scores: Scores
    assessment: Assessment
    cast: CastScores | None = None
    seconds: dict[str, float]


class Foundry:
    """Makes LoRAs. `home` and the other settings default to the environment (see Settings)."""

    def __init__(self, home: Path | str | None = None, settings: Settings | None = None) -> None:
        if settings is None:
            settings = Settings() if home is None else Settings(home=Path(home))
        self.settings = settings

    def create(  # noqa: PLR0913 - all but two are options by name
        self,
        character: Character,
        recipe: str | Recipe | None = None,
        *,
        settings: Iterable[str] = (),
        seed: int | None = None,
        output_name: str | None = None,
        again: Again = "new",
        pictures: Sequence[Path] = (),
        progress: ProgressCallback = lambda event: None,
        finished: Callable[[Stage, BaseModel, float], None] = lambda stage, result, seconds: None,
    ) -> CreateResult:
        """Runs the whole pipeline here and returns what it made; an interrupted run goes on where it stopped.

        recipe: a shipped recipe's name, a TOML file's path, or a Recipe; `settings` are "section.key=value" changes.
        pictures: folders or zip files of own pictures to train on; they are copied, and nothing is drawn unless the
        recipe's dataset.source asks for it.
        again: what becomes of a run of that name that was asked for with other words or settings: `new` keeps it whole in
        `versions/NN/` and takes over what still fits, `continue` goes on in it, `replace` removes it.
        progress: called often, from this thread. finished: called after each stage.
        Raises PermanentError kinds before anything is written if the input cannot be used.
        """
        run, base = self.prepare(
            character, recipe, settings=settings, seed=seed, output_name=output_name, own=bool(pictures)
        )
        return self._run(run, base, again, {run.dataset_dir: pictures}, progress, finished)

    def _run(
        self,
        run: Run,
        base: Base,
        again: Again,
        own: Mapping[Path, Sequence[Path]],
        progress: ProgressCallback,
        finished: Callable[[Stage, BaseModel, float], None],
    ) -> CreateResult:
        """The stages of a run that was prepared. own: the pictures that were brought for a character, by its folder."""
        paths = RunPaths(run.dataset_dir, run.character.slug)
        told = _told(notifier_of(self.settings), run.character.name, paths)
        check_writable(run.dataset_dir, run.lora_dir)
        make_folder(run.dataset_dir)
        with FolderLock(paths.lock), told:
            run = numbered(run, again)
            claim(paths, run)
            for each in run.member_runs:
                place = RunPaths(each.dataset_dir, each.character.slug)
                for message in import_pictures(own[each.dataset_dir], place).notes():
                    progress(ProgressEvent(stage="generate", done=0, total=0, message=message))
            try:
                seconds = do_stages(run, base, self.settings, progress, finished)
            except (OSError, RuntimeError, MemoryError, ImportError) as error:
                raise as_ours(error) from error
        return result_of(run, seconds)

    def create_cast(  # noqa: PLR0913 - all but two are options by name
        self,
        name: str,
        members: Sequence[Character],
        recipe: str | Recipe | None = None,
        *,
        settings: Iterable[str] = (),
        seed: int | None = None,
        output_name: str | None = None,
        again: Again = "new",
        pictures: Mapping[str, Sequence[Path]] | None = None,
        progress: ProgressCallback = lambda event: None,
        finished: Callable[[Stage, BaseModel, float], None] = lambda stage, result, seconds: None,
    ) -> CreateResult:
        """The same for two to six characters in one LoRA called `name`: each gets a set of its own, drawn or, where
        `pictures` names folders for it, brought; one training takes them all. Raises InputError, as `create` does."""
        own = pictures or {}
        told = [Member(character=each, source="own" if own.get(each.name) else "auto") for each in members]
        run, base = self.prepare(
            Character(name=name), recipe, settings=settings, seed=seed, output_name=output_name, members=told
        )
        sources = {each.dataset_dir: own.get(each.character.name, ()) for each in run.member_runs}
        return self._run(run, base, again, sources, progress, finished)

    async def acreate(
        self, character: Character, recipe: str | Recipe | None = None, **options: Any
    ) -> CreateResult:
        """`create` in a thread, for callers that have an event loop; takes the same options."""
        return await asyncio.to_thread(self.create, character, recipe, **options)

    def prepare(
        self,
        character: Character,
        recipe: str | Recipe | None = None,
        *,
        settings: Iterable[str] = (),
        seed: int | None = None,
        output_name: str | None = None,
        own: bool = False,
        members: Sequence[Member] = (),
    ) -> tuple[Run, Base]:
        """Checks every input and says where the run will work, without writing anything. `own`: a recipe that leaves
        open where its pictures come from trains on own ones. `members`: see `create_cast`."""
        changes = [*settings, *([] if seed is None else [f"seed={seed}"])]
        if not isinstance(recipe, Recipe):
            recipe = load_recipe(recipe or self.settings.recipe, changes, self.settings.recipe_folders)
        elif changes:
            raise InputError(
                "Settings change a recipe that is named or read from a file, not a Recipe object."
            )
        if own and recipe.dataset.source == "auto":
            recipe = recipe.model_copy(
                update={"dataset": recipe.dataset.model_copy(update={"source": "own"})}
            )
        base = recipe_base(recipe, self.settings.model_folders, training=True)
        run = Run(
            character=character,
            recipe=recipe,
            dataset_dir=self.settings.datasets_dir / character.name,
            lora_dir=self.settings.loras_dir,
            output_name=file_name(output_name or f"{character.slug}_{recipe.name}"),
            members=tuple(members),
        )
        check_ahead(run, self.settings)
        return run, base


@contextmanager
def _told(notifier: Notifier | None, character: str, paths: RunPaths) -> Iterator[None]:
    """Tells people how the block ended. That nobody could be told is logged; it changes nothing about the run."""

    def tell(news: News) -> None:
        try:
            if notifier is not None:
                notifier.notify(news)
        except FoundryError as error:
            logger.warning("%s", error)

    try:
        yield
    except FoundryError as error:
        tell(of_failure(character, "the run", str(error), paths))
        raise
    tell(of_finish(character, paths))


def check_writable(*folders: Path) -> None:
    """Raises StorageError for a folder that cannot be made or written, before any work is done."""
    for folder in folders:
        existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
        with storage_errors(folder):
            probe = existing / f".lora-foundry-{id(folder)}"
            probe.touch(exist_ok=False)
            probe.unlink()


def result_of(run: Run, seconds: dict[str, float]) -> CreateResult:
    """What a finished run left in its folders. `seconds`: of each stage, by name."""
    paths = RunPaths(run.dataset_dir, run.character.slug)
    evaluation = read_model(paths.evaluation_result, Evaluation)
    publication = read_model(paths.publication, Publication)
    if evaluation is None or publication is None:
        raise FoundryError(f"The run in {paths.root} left no result; run it again.")
    return CreateResult(
        status="completed",
        published=publication.published,
        verdict=publication.verdict,
        lora_path=publication.lora,
        report_path=paths.report,
        dataset_dir=run.dataset_dir,
        trigger=run.trigger,
        scores=evaluation.scores,
        assessment=evaluation.assessment,
        cast=evaluation.cast,
        seconds=seconds,
    )
