"""What all routes share: one of each for an app, made when it starts."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Annotated, cast

from fastapi import Depends, Request
from prometheus_client import CollectorRegistry

from lora_foundry.domain.character import check_name
from lora_foundry.domain.run import MEMBERS
from lora_foundry.errors import InputError
from lora_foundry.files import bin as bin_folder
from lora_foundry.files.paths import RunPaths
from lora_foundry.files.safe_paths import inside
from lora_foundry.files.versions import folder_of
from lora_foundry.settings import Settings
from lora_foundry.tasks.pipelines import Pipeline, get_pipeline
from lora_foundry.tasks.store import TaskStore
from lora_foundry.web.bases import Bases
from lora_foundry.web.dataset import Looks
from lora_foundry.web.estimates import Estimates
from lora_foundry.web.hub import Hub
from lora_foundry.web.machine import Machine
from lora_foundry.web.memory import MemoryEstimates
from lora_foundry.web.mirror import Mirror
from lora_foundry.web.problems import NotFoundError
from lora_foundry.web.redraws import Redraws
from lora_foundry.web.sessions import GuessLimit, Sessions
from lora_foundry.web.setups import Setups
from lora_foundry.web.thumbnails import Thumbnails
from lora_foundry.web.trials import Trials


@dataclass
class Site:
    """The settings, the task table, and what is kept in memory."""

    settings: Settings
    store: TaskStore
    sessions: Sessions
    limit: GuessLimit
    hub: Hub
    registry: CollectorRegistry
    root: str = ""  # the path in front of ours, where a proxy shows the server below one
    estimates: Estimates = field(default_factory=Estimates)
    thumbnails: Thumbnails = field(default_factory=Thumbnails)
    memory: MemoryEstimates = field(default_factory=MemoryEstimates)
    machine: Machine = field(default_factory=Machine)
    looks: Looks = field(default_factory=Looks)
    trials: Trials = field(default_factory=Trials)
    setups: Setups = field(default_factory=Setups)
    bases: Bases = field(default_factory=Bases)
    mirror: Mirror = field(default_factory=Mirror)
    edits: asyncio.Lock = field(default_factory=asyncio.Lock)  # one change to a dataset at a time
    drawing: asyncio.Lock = field(default_factory=asyncio.Lock)  # held while it is decided who may draw
    moving: asyncio.Lock = field(
        default_factory=asyncio.Lock
    )  # held while something goes to the bin, or comes from it
    redraws: Redraws = field(init=False)

    def __post_init__(self) -> None:
        self.redraws = Redraws(self.edits)

    async def pipeline(self, reference: str) -> Pipeline:
        """The pipeline of that id. Raises NotFoundError."""
        if "\0" in reference:
            raise NotFoundError("There is no such run.")
        try:
            found = await get_pipeline(self.store, reference)
        except InputError:
            raise NotFoundError(f"There is no run {reference[:80]!r}.") from None
        if found.id in self.hidden():
            raise NotFoundError(f"This run of {found.character} is in the bin; restore it there.")
        await self.mirror.look(self.settings, found)
        return found

    def hidden(self) -> frozenset[str]:
        """The runs that are in the bin."""
        return bin_folder.hidden_runs(self.settings.home)

    def folder(self, pipeline: Pipeline) -> RunPaths:
        """The dataset folder of a pipeline, there or not. Raises NotFoundError where its row names none."""
        try:
            name = check_name(pipeline.character)
            root = inside(self.settings.datasets_dir, name, "character_name")
        except InputError as error:
            raise NotFoundError(str(error)) from None
        root = folder_of(root, pipeline.version)
        return RunPaths(root, _slug(name))

    def sets(self, pipeline: Pipeline) -> dict[str, RunPaths]:
        """Where the pictures lie: the folder of each member of a cast by its name, else the one folder under "". Raises
        NotFoundError where the rows name none."""
        paths = self.folder(pipeline)
        if not pipeline.members:
            return {"": paths}
        try:
            names = [check_name(each) for each in pipeline.members]
            return {
                name: RunPaths(inside(paths.root / MEMBERS, name, "member"), _slug(name)) for name in names
            }
        except InputError as error:
            raise NotFoundError(str(error)) from None


def _slug(name: str) -> str:
    return name.lower().replace(" ", "_")


def _site(request: Request) -> Site:
    return cast(Site, request.app.state.site)


Here = Annotated[Site, Depends(_site)]
