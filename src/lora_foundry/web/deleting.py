"""Deleting and putting back: a run with its folder, a dataset, an installed LoRA. Everything goes to the bin first; a run's
rows stay in the table, hidden, until the bin is emptied."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from lora_foundry.domain.publication import Publication
from lora_foundry.domain.task import TaskStatus
from lora_foundry.domain.trial import TrialState
from lora_foundry.errors import InputError
from lora_foundry.files import bin as bin_folder
from lora_foundry.files.bin import BinEntry
from lora_foundry.files.hashing import file_hash
from lora_foundry.files.locks import FolderLock
from lora_foundry.files.paths import (
    RunPaths,
    published_card,
    published_lora,
    published_metadata,
    published_preview,
)
from lora_foundry.files.storage import read_model
from lora_foundry.files.versions import version_entries
from lora_foundry.remote.access import mark_deleted
from lora_foundry.settings import Settings
from lora_foundry.tasks.pipelines import Pipeline, get_pipeline, recent_pipelines
from lora_foundry.web.problems import ConflictError, NotFoundError
from lora_foundry.web.safe_files import safe_file
from lora_foundry.web.site import Site

_OVER = (TaskStatus.COMPLETED, TaskStatus.FAILED, TaskStatus.CANCELLED)
_MOST_RUNS = 5000


async def delete_run(here: Site, pipeline: Pipeline, lora: bool) -> BinEntry:
    """Moves a run to the bin: its folder, if no other run works there, and the LoRA that it installed where asked for.
    Raises ConflictError for a run that is not over, or whose folder is in use."""
    _refuse_unfinished(pipeline)
    _refuse_while_drawing(here, pipeline)
    shared = bool(await _sharers(here, pipeline))
    paths = here.folder(pipeline)

    def throw_away(files: list[Path]) -> BinEntry:
        return bin_folder.throw_away(here.settings.home, "run", pipeline.character, files, [pipeline.id])

    def move() -> BinEntry:
        files = list(_lora_files(here.settings, paths)) if lora else []
        if not shared:
            mark_deleted(here.settings, pipeline.character, pipeline.version)
        if shared or not paths.root.is_dir():
            return throw_away(files)
        with _alone(paths):
            return throw_away([*files, *version_entries(paths)])

    return await asyncio.to_thread(move)


async def delete_dataset(here: Site, pipeline: Pipeline) -> BinEntry:
    """Moves the pictures of a run, their captions and what was found of them to the bin; LoRA and results stay. Raises
    ConflictError, and NotFoundError where there are none."""
    for each in (pipeline, *await _sharers(here, pipeline)):
        _refuse_unfinished(each)
        _refuse_while_drawing(here, each)
    paths, sets = here.folder(pipeline), here.sets(pipeline).values()
    files = [file for each in sets for file in _set_files(each)]

    def move() -> BinEntry:
        if not any(each.images.is_dir() for each in sets):
            raise NotFoundError("This run has no pictures.")
        with _alone(paths):
            return bin_folder.throw_away(here.settings.home, "dataset", pipeline.character, files)

    return await asyncio.to_thread(move)


def _set_files(paths: RunPaths) -> tuple[Path, ...]:
    return (
        *(paths.images, paths.masks, paths.rejected, paths.candidates, paths.rounds, paths.crops),
        *(paths.generation_metadata, paths.curation, paths.tagging_results, paths.exclusions),
        *(paths.triage, paths.triage_report, paths.edits),
    )


def delete_lora(settings: Settings, name: str) -> BinEntry:
    """Moves an installed LoRA and the files beside it to the bin. Raises NotFoundError."""
    safe_file(settings.loras_dir, f"{name}.safetensors")
    return bin_folder.throw_away(settings.home, "LoRA", name, _installed(settings.loras_dir, name))


async def put_back_run(here: Site, name: str) -> BinEntry:
    """Restores what lies in the bin, for every host that shares a storage. Raises as `put_back` does."""
    entry = await asyncio.to_thread(put_back, here.settings, name)
    for pipeline in entry.pipelines:
        with suppress(InputError):
            found = await get_pipeline(here.store, pipeline)
            await asyncio.to_thread(
                mark_deleted, here.settings, found.character, found.version, deleted=False
            )
    return entry


def put_back(settings: Settings, name: str) -> BinEntry:
    """Restores what lies in the bin. Raises NotFoundError, ConflictError where something else stands there now."""
    entry = entry_of(settings, name)
    try:
        bin_folder.put_back(settings.home, entry)
    except InputError as error:
        raise ConflictError(str(error)) from error
    return entry


async def empty(here: Site, chosen: Iterable[BinEntry]) -> int:
    """Removes entries of the bin for good, a run's rows with them; says how many."""
    count = 0
    for entry in chosen:
        await asyncio.to_thread(bin_folder.remove, here.settings.home, entry)
        for pipeline in entry.pipelines:
            try:
                found = await get_pipeline(here.store, pipeline)
            except InputError:
                continue
            await here.store.remove(*(stage.task_id for stage in found.stages))
        count += 1
    return count


async def empty_outdated(here: Site) -> None:
    """Removes what has lain in the bin for too long."""
    now = datetime.now(UTC)
    await empty(here, await asyncio.to_thread(bin_folder.outdated, here.settings.home, now))


def entry_of(settings: Settings, name: str) -> BinEntry:
    """What lies in the bin under an id. Raises NotFoundError."""
    try:
        return bin_folder.find(settings.home, name)
    except InputError as error:
        raise NotFoundError(str(error)) from error


def _refuse_unfinished(pipeline: Pipeline) -> None:
    if pipeline.status not in _OVER:
        raise ConflictError(f"{pipeline.character} is {pipeline.status}; cancel it first, then delete it.")


def _refuse_while_drawing(here: Site, pipeline: Pipeline) -> None:
    """What this server draws would make the folder anew."""
    redraws = [here.redraws.state(each) for each in here.sets(pipeline).values()]
    tried = here.trials.shown(here.folder(pipeline))
    if any(each and each.state == "running" for each in redraws) or any(
        each.state is TrialState.RUNNING for each in tried
    ):
        raise ConflictError(
            f"A picture of {pipeline.character} is being drawn; delete it when that has ended."
        )


@contextmanager
def _alone(paths: RunPaths) -> Iterator[None]:
    """The folder's lock, as long as the block takes. Raises ConflictError where a run is at work there."""
    try:
        lock = FolderLock(paths.lock).__enter__()
    except InputError as error:
        raise ConflictError(str(error)) from error
    try:
        if os.name != "posix":  # which moves no folder with an open file in it
            lock.__exit__(None, None, None)
        yield
    finally:
        lock.__exit__(None, None, None)


async def _sharers(here: Site, pipeline: Pipeline) -> list[Pipeline]:
    """The other runs that work in the same folder and are not in the bin."""
    root, name = here.folder(pipeline).root, pipeline.character.lower()
    hidden = here.hidden()
    return [
        each
        for each in await recent_pipelines(here.store, limit=_MOST_RUNS)
        if each.id != pipeline.id
        and each.id not in hidden
        and each.character.lower() == name
        and here.folder(each).root == root
    ]


def _lora_files(settings: Settings, paths: RunPaths) -> Iterable[Path]:
    """What this run has installed, if it is still there: a later version may have taken its place under the same name."""
    published = read_model(paths.publication, Publication)
    if published is None or published.lora is None or published.lora.parent != settings.loras_dir:
        return ()
    if not published.lora.is_file() or file_hash(published.lora) != published.sha256:
        return ()
    return _installed(settings.loras_dir, published.lora.stem)


def _installed(folder: Path, name: str) -> list[Path]:
    spelt = (published_lora, published_preview, published_metadata, published_card)
    return [path for each in spelt if (path := each(folder, name)).is_file()]
