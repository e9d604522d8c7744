"""Deleting, undoing it, and the bin between the two."""

from __future__ import annotations

import asyncio
from datetime import datetime
from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel

from lora_foundry.files import bin as bin_folder
from lora_foundry.files.bin import BinEntry
from lora_foundry.files.paths import BinPaths
from lora_foundry.web import deleting
from lora_foundry.web.disk_use import size_of
from lora_foundry.web.routes import Page
from lora_foundry.web.site import Here, Site

router = APIRouter(prefix="/api/v1", tags=["bin"])
PAGES = (Page("/bin", "bin", "Bin", "M4 7h16M9 7V4h6v3M6 7l1 13h10l1-13M10 11v5m4-5v5", place=6),)


class BinView(BaseModel):
    """Something that was deleted. `until`: when it is removed for good."""

    id: str
    thing: Literal["run", "dataset", "LoRA"]
    name: str
    at: datetime
    until: datetime
    bytes: int


class Emptied(BaseModel):
    removed: int


@router.delete("/pipelines/{pipeline}")
async def delete_run(here: Here, pipeline: str, lora: bool = False) -> BinView:
    """Moves a run that is over to the bin, with its pictures, checkpoints and results; with `lora`, the LoRA that it installed
    as well. A folder in which another run works stays."""
    async with here.moving:  # of two that delete the same, the second finds it in the bin
        found = await here.pipeline(pipeline)
        return await _shown(here, await deleting.delete_run(here, found, lora))


@router.delete("/pipelines/{pipeline}/dataset")
async def delete_dataset(here: Here, pipeline: str) -> BinView:
    """Moves the pictures and captions of a run that is over to the bin; its LoRA and results stay."""
    async with here.moving, here.edits:
        found = await here.pipeline(pipeline)
        return await _shown(here, await deleting.delete_dataset(here, found))


@router.delete("/loras/{name}")
async def delete_lora(here: Here, name: str) -> BinView:
    """Moves an installed LoRA, and the preview and metadata beside it, to the bin."""
    async with here.moving:
        return await _shown(here, await asyncio.to_thread(deleting.delete_lora, here.settings, name))


@router.get("/bin")
async def read(here: Here) -> list[BinView]:
    """What was deleted, the newest first. It is removed for good after thirty days."""
    await deleting.empty_outdated(here)
    listed = await asyncio.to_thread(bin_folder.entries, here.settings.home)
    return [await _shown(here, each) for each in listed]


@router.post("/bin/{entry}/restore")
async def restore(here: Here, entry: str) -> BinView:
    """Puts it back where it was; 409 where something else stands there now."""
    async with here.moving:
        shown = await _shown(here, await asyncio.to_thread(deleting.entry_of, here.settings, entry))
        await deleting.put_back_run(here, entry)
    return shown


@router.delete("/bin/{entry}")
async def remove(here: Here, entry: str) -> Emptied:
    """Removes it for good."""
    async with here.moving:
        found = await asyncio.to_thread(deleting.entry_of, here.settings, entry)
        return Emptied(removed=await deleting.empty(here, [found]))


@router.delete("/bin")
async def empty(here: Here) -> Emptied:
    """Removes everything in the bin for good."""
    async with here.moving:
        listed = await asyncio.to_thread(bin_folder.entries, here.settings.home)
        return Emptied(removed=await deleting.empty(here, listed))


async def _shown(here: Site, entry: BinEntry) -> BinView:
    size = await asyncio.to_thread(size_of, BinPaths(here.settings.home, entry.id).root)
    return BinView(
        id=entry.id, thing=entry.thing, name=entry.name, at=entry.at, until=entry.until, bytes=size
    )
