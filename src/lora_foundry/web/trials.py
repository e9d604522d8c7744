"""Trying a finished LoRA: a prompt is drawn without and with it by a child process of the server, one trial at a time,
and not while a worker draws or trains, since one GPU holds one of them."""

from __future__ import annotations

import asyncio
import secrets
from datetime import UTC, datetime
from pathlib import Path

from lora_foundry.domain.publication import Publication
from lora_foundry.domain.run import Run
from lora_foundry.domain.trial import Rival, Trial, TrialState
from lora_foundry.errors import FoundryError, RetryableError
from lora_foundry.files.paths import RunPaths
from lora_foundry.files.storage import read_model, remove_tree, write_model
from lora_foundry.settings import Settings
from lora_foundry.tasks.children import Child, Job, run_alone
from lora_foundry.trial_job import ENTRY, TrialWork
from lora_foundry.web.problems import NotFoundError
from lora_foundry.web.safe_files import is_plain_name, safe_file

KEPT = 20  # trials of a run; the oldest go first
TIMEOUT = 1800.0
HEARTBEAT, PATIENCE = (
    2.0,
    8.0,
)  # seconds between signs of life to the child, and without one until it ends itself


class Trials:
    """The trials of this server; at most one is under way."""

    def __init__(self) -> None:
        self._running: dict[str, asyncio.Task[None]] = {}

    @property
    def busy(self) -> bool:
        return bool(self._running)

    def start(
        self, settings: Settings, run: Run, paths: RunPaths, asked: Trial, rivals: tuple[Path, ...] = ()
    ) -> Trial:
        """Begins to draw; returns at once. rivals: the LoRA files of the trial's rivals.

        Raises RetryableError while another is drawn, NotFoundError without a LoRA."""
        if self._running:
            raise RetryableError("Another prompt is being tried; wait until its pictures are there.")
        lora = lora_file(settings, paths)
        for old in listed(paths)[KEPT - 1 :]:
            remove_tree(paths.trial(old.id).root)
        folder = paths.trial(asked.id)
        write_model(folder.result, asked)
        work = TrialWork(
            trial=asked, recipe=run.recipe, lora=lora, rivals=rivals, folder=folder.root, settings=settings
        ).model_dump(mode="json") | {"settings": settings.for_child()}
        log = settings.home.expanduser().absolute() / "logs" / "trials" / f"{asked.id}.log"
        job = Job(ENTRY, work, PATIENCE, TIMEOUT)
        self._running[asked.id] = asyncio.create_task(self._draw(Child(log, _nothing), job, paths, asked))
        return asked

    async def _draw(self, child: Child, job: Job, paths: RunPaths, asked: Trial) -> None:
        state, error = TrialState.FAILED, "The server was stopped meanwhile; try it again."
        try:
            outcome = await run_alone(child, job, HEARTBEAT)
            error = outcome.error
            state = TrialState.FAILED if error else TrialState.COMPLETED
        except FoundryError as problem:
            error = str(problem)
        finally:
            self._running.pop(asked.id, None)
            write_model(
                paths.trial(asked.id).result, asked.model_copy(update={"state": state, "error": error})
            )

    def shown(self, paths: RunPaths) -> list[Trial]:
        """The trials of a run, the newest first. One that an earlier server had begun has failed."""
        lost = {"state": TrialState.FAILED, "error": "The server was stopped meanwhile; try it again."}
        return [
            each.model_copy(update=lost)
            if each.state is TrialState.RUNNING and each.id not in self._running
            else each
            for each in listed(paths)
        ]

    async def wait(self, trial: str, seconds: float) -> None:
        """Returns when that trial is over, or after so many seconds; it goes on then."""
        if task := self._running.get(trial):
            await asyncio.wait([task], timeout=seconds)

    async def finish(self) -> None:
        """Ends what is under way, child and all."""
        tasks = list(self._running.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def new_trial(
    prompt: str,
    negative: str,
    strength: float,
    seeds: tuple[int, ...],
    rivals: tuple[Rival, ...] = (),
    trigger: str = "",
) -> Trial:
    """One with a name of its own, which sorts by time."""
    now = datetime.now(UTC)
    return Trial(
        id=f"{now:%Y%m%d-%H%M%S-%f}-{secrets.token_hex(3)}",
        prompt=prompt,
        negative=negative,
        strength=strength,
        seeds=seeds,
        rivals=rivals,
        trigger=trigger,
        made_at=now,
    )


def listed(paths: RunPaths) -> list[Trial]:
    """Whatever lies in the run's folder, the newest first."""
    try:
        folders = sorted((each for each in paths.trials.iterdir() if is_plain_name(each.name)), reverse=True)
    except OSError:
        return []
    found = [read_model(paths.trial(folder.name).result, Trial) for folder in folders]
    return [each for each in found if each is not None]


def lora_file(settings: Settings, paths: RunPaths) -> Path:
    """The LoRA of a run: the one that was installed, else the one that was chosen, else the one that was trained.
    Raises NotFoundError."""
    published = read_model(paths.publication, Publication)
    if published is not None and published.lora is not None and published.lora.parent == settings.loras_dir:
        try:
            return safe_file(settings.loras_dir, published.lora.name)
        except NotFoundError:
            pass  # somebody moved it; the chosen one is the same file
    if paths.chosen_lora.is_file():
        return safe_file(paths.root, paths.evaluation.name, paths.chosen_lora.name)
    return safe_file(paths.root, paths.training.name, paths.trained_lora.name)


def _nothing(event: dict[str, object]) -> None:
    """Its pictures are seen as they come to be."""
