"""The training set: its pictures and captions, and a person's hand in it."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple, get_args
from urllib.parse import quote, urlencode

from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import BaseModel, Field

from lora_foundry.errors import InputError
from lora_foundry.files.paths import RunPaths
from lora_foundry.files.training_set import list_set
from lora_foundry.web import answers, set_history
from lora_foundry.web import dataset as sets
from lora_foundry.web.busy import refuse_while_busy
from lora_foundry.web.cropping import Area, crop_picture
from lora_foundry.web.dataset import NearPair, SetPicture, Standing, TagCount
from lora_foundry.web.models import RequestModel
from lora_foundry.web.problems import BUSY, NotFoundError
from lora_foundry.web.redraws import Redraw
from lora_foundry.web.routes import Page
from lora_foundry.web.site import Here, Site
from lora_foundry.web.thumbnails import SIZES
from lora_foundry.web.views import address

router = APIRouter(prefix="/api/v1/pipelines/{pipeline}", tags=["dataset"])
PAGES = (Page("/pipelines/{pipeline}/dataset", "dataset", below="pipelines"),)
PICTURE: dict[int | str, dict[str, Any]] = {
    200: {"content": {"image/png": {}, "image/webp": {}}, "description": "The picture."}
}
_STANDINGS = get_args(Standing)
Size = Annotated[int, Query(ge=32, le=1024, description="Pixels; rounded up to 128, 256, 512 or 1024.")]
Tag = Annotated[str, Field(min_length=1, max_length=200)]


class ShownPicture(SetPicture):
    """With the addresses of the whole picture and of a small one. member: whose it is, in a cast."""

    member: str = ""
    url: str
    thumbnail: str


class Dataset(BaseModel):
    """The set of a pipeline, which it shares with other pipelines of the same character. Of a cast each member has a set of
    its own; without `member` the pictures of all are told, and nothing but these."""

    images: list[ShownPicture]
    tags: list[TagCount]
    near_duplicates: list[NearPair]
    counts: dict[str, int]
    undo: str | None = Field(default=None, description="What `POST /dataset/undo` would take back.")
    redraw: Redraw | None = Field(default=None, description="The picture that is, or was last, drawn again.")


class CaptionIn(RequestModel):
    """previous: what the caption was when the person began; 409 where it is not so any more."""

    caption: str = Field(max_length=20_000)
    previous: str | None = Field(default=None, max_length=20_000)


class TagsIn(RequestModel):
    """`add` goes to the end of captions, `remove` is taken out in any case of letters; all captions without `files`."""

    add: list[Tag] = Field(default=[], max_length=50)
    remove: list[Tag] = Field(default=[], max_length=50)
    files: list[Annotated[str, Field(max_length=300)]] | None = Field(default=None, max_length=2000)


class ReplaceIn(RequestModel):
    """`find` becomes `replace` in captions, whatever its case; in all of them without `files`."""

    find: str = Field(min_length=1, max_length=500)
    replace: str = Field(default="", max_length=500)
    files: list[Annotated[str, Field(max_length=300)]] | None = Field(default=None, max_length=2000)


class ChosenIn(RequestModel):
    """Pictures, and why they are thrown out."""

    files: list[Annotated[str, Field(max_length=300)]] = Field(min_length=1, max_length=2000)
    reason: str = Field(default="", max_length=500)


class CropIn(RequestModel):
    """A part of the picture, in pixels from its upper left corner, as `width` and `height` in `GET /dataset` count them."""

    left: int = Field(ge=0, le=100_000)
    top: int = Field(ge=0, le=100_000)
    width: int = Field(ge=1, le=100_000)
    height: int = Field(ge=1, le=100_000)


class Undone(BaseModel):
    """What was taken back."""

    words: str


class TagsChanged(BaseModel):
    changed: int
    files: list[str]


class ExcludeIn(RequestModel):
    reason: str = Field(default="", max_length=500)


class MemberSet(NamedTuple):
    """The set that an address means. member: whose it is, in a cast, else ""."""

    pipeline: str
    member: str
    paths: RunPaths


async def member_set(
    here: Here,
    pipeline: str,
    member: Annotated[str, Query(max_length=200, description="Of a cast: whose set.")] = "",
) -> MemberSet:
    """Raises NotFoundError, and InputError where a cast has several sets and none is named."""
    found = await here.pipeline(pipeline)
    known = here.sets(found)
    if member not in known:
        if not member:
            raise InputError(f"{found.character} is a cast; say with `member` whose set: {', '.join(known)}.")
        raise NotFoundError(f"{found.character} has no member {member!r}.")
    return MemberSet(found.id, member, known[member])


ChosenSet = Annotated[MemberSet, Depends(member_set)]


@router.get("/dataset")
async def read(
    here: Here,
    pipeline: str,
    member: Annotated[
        str, Query(max_length=200, description="Of a cast: whose set; else all pictures.")
    ] = "",
) -> Dataset:
    """Every picture with caption, shot and standing, tag frequencies and pairs that look alike."""
    found = await here.pipeline(pipeline)
    if member or not found.members:
        return await asyncio.to_thread(_read, here, await member_set(here, pipeline, member))
    each_set = [MemberSet(found.id, name, paths) for name, paths in here.sets(found).items()]
    parts = [await asyncio.to_thread(_read, here, each) for each in each_set]
    counts = sum((Counter(each.counts) for each in parts), Counter[str]())
    images = [picture for each in parts for picture in each.images]
    return Dataset(
        images=images, tags=[], near_duplicates=[], counts={name: counts[name] for name in _STANDINGS}
    )


def _read(here: Site, chosen: MemberSet) -> Dataset:
    paths = chosen.paths
    records = sets.read_records(paths)
    pictures = sets.pictures_of(paths, here.looks, records)
    return Dataset(
        images=[_shown(chosen, each) for each in pictures],
        tags=sets.count_tags(pictures),
        near_duplicates=sets.near_pairs(pictures, records),
        counts={name: sum(each.status == name for each in pictures) for name in _STANDINGS},
        undo=step.words if (step := set_history.last_step(paths)) else None,
        redraw=here.redraws.state(paths),
    )


def _shown(chosen: MemberSet, picture: SetPicture) -> ShownPicture:
    where = address(chosen.pipeline, "dataset", picture.file)
    whose = {"member": chosen.member} if chosen.member else {}
    version = urlencode(whose | {"v": f"{int(picture.modified.timestamp() * 1000):x}"})
    return ShownPicture(
        **picture.model_dump(),
        member=chosen.member,
        url=f"{where}?{version}",
        thumbnail=f"{where}/thumbnail?size=256&{version}",
    )


@router.get("/dataset/{file:path}/thumbnail", response_class=Response, responses=PICTURE)
async def thumbnail(here: Here, request: Request, chosen: ChosenSet, file: str, size: Size = 256) -> Response:
    """The same, small."""
    path = sets.find_picture(chosen.paths, file)
    return answers.thumbnail(request, await here.thumbnails.of(path, size))


@router.get("/thumbnail", response_class=Response, responses=PICTURE)
async def newest(here: Here, request: Request, pipeline: str, size: Size = 128) -> Response:
    """The newest picture of the set, or of a cast's sets, small."""
    found = here.sets(await here.pipeline(pipeline)).values()
    listed = [picture for each in found for picture in (await asyncio.to_thread(list_set, each)).pictures]
    if not listed:
        raise NotFoundError("There is no picture yet.")
    path = max((each.path for each in listed), key=lambda each: each.stat().st_mtime_ns)
    return answers.thumbnail(request, await here.thumbnails.of(path, size))


@router.get("/dataset/{file:path}", response_class=Response, responses=PICTURE)
async def picture(here: Here, request: Request, chosen: ChosenSet, file: str) -> Response:
    """A picture as it lies in the set, or among the rejected ones; one that is a link to elsewhere, or of a kind that browsers
    do not show, within 1024 pixels."""
    paths = chosen.paths
    path = sets.find_picture(paths, file)
    if sets.leads_out(paths, path) or not answers.can_be_shown(path):
        return answers.thumbnail(request, await here.thumbnails.of(path, SIZES[-1]))
    return answers.picture_file(request, path)


@router.put("/dataset/{file:path}/caption")
async def edit_caption(here: Here, chosen: ChosenSet, file: str, asked: CaptionIn) -> ShownPicture:
    """Writes the .txt beside the picture; the caption stage leaves it alone from now on."""
    paths = chosen.paths
    async with here.edits:
        found = sets.in_set(paths, file)

        def write() -> None:
            with set_history.recorded(paths, f"changed the caption of {found.name}"):
                sets.write_caption(found, asked.caption, asked.previous)

        await asyncio.to_thread(write)
    return await _one(here, chosen, file)


@router.post("/dataset/tags")
async def edit_tags(here: Here, chosen: ChosenSet, asked: TagsIn) -> TagsChanged:
    """Adds or removes tags in many captions at once."""
    paths = chosen.paths
    words = [f"added {', '.join(asked.add)}"] if asked.add else []
    words += [f"removed {', '.join(asked.remove)}"] if asked.remove else []

    def change(trigger: str) -> list[str]:
        return sets.change_tags(paths, asked.add, asked.remove, asked.files, trigger)

    return await _change_many(here, paths, " and ".join(words), change)


@router.post("/dataset/replace")
async def replace(here: Here, chosen: ChosenSet, asked: ReplaceIn) -> TagsChanged:
    """Puts other words in the place of some in many captions at once; nothing in their place removes them."""
    paths = chosen.paths

    def change(trigger: str) -> list[str]:
        return sets.replace_words(paths, asked.find, asked.replace, asked.files, trigger)

    return await _change_many(here, paths, f"replaced {asked.find!r} with {asked.replace!r}", change)


async def _change_many(
    here: Site, paths: RunPaths, words: str, change: Callable[[str], list[str]]
) -> TagsChanged:
    """One step that can be undone; `change` gets the trigger word."""

    def work() -> list[str]:
        run = sets.run_of(paths)
        with set_history.recorded(paths, words):
            return change(run.character.trigger if run else "")

    async with here.edits:
        files = await asyncio.to_thread(work)
    return TagsChanged(changed=len(files), files=files)


@router.post("/dataset/exclude")
async def exclude_many(here: Here, chosen: ChosenSet, asked: ChosenIn) -> TagsChanged:
    """Throws pictures out of the set."""
    paths = chosen.paths

    def change(trigger: str) -> list[str]:
        found = [sets.in_set(paths, file) for file in asked.files]
        for each in found:
            sets.exclude(paths, each, asked.reason)
        return [each.name for each in found]

    return await _change_many(here, paths, f"excluded {_count(asked.files)}", change)


@router.post("/dataset/restore")
async def restore_many(here: Here, chosen: ChosenSet, asked: ChosenIn) -> TagsChanged:
    """Takes pictures back that were thrown out."""
    paths = chosen.paths

    def change(trigger: str) -> list[str]:
        found = [sets.in_set(paths, file) for file in asked.files]
        for each in found:
            sets.restore(paths, each)
        return [each.name for each in found]

    return await _change_many(here, paths, f"took {_count(asked.files)} back", change)


@router.post("/dataset/undo")
async def undo(here: Here, chosen: ChosenSet) -> Undone:
    """Takes the newest change back: captions, tags, exclusions, a crop, a picture that was drawn again. 409 where there is
    none."""
    paths = chosen.paths
    async with here.edits:
        step = await asyncio.to_thread(set_history.undo, paths)
    return Undone(words=step.words)


@router.post("/dataset/{file:path}/redraw", status_code=202, responses=BUSY)
async def redraw(here: Here, chosen: ChosenSet, file: str) -> Redraw:
    """Begins to draw a picture again, the same shot from another seed, and returns at once; `GET /dataset` shows when it is
    there. 503 while the machine draws or trains something else."""
    run = await asyncio.to_thread(sets.run_of, chosen.paths)
    if run is None:
        raise NotFoundError("This run has not begun yet; there is no picture to draw again.")
    async with here.drawing:
        await refuse_while_busy(here)
        return here.redraws.start(here.settings, run, chosen.paths, file)


@router.post("/dataset/{file:path}/crop", status_code=201)
async def crop(here: Here, chosen: ChosenSet, file: str, asked: CropIn) -> ShownPicture:
    """Puts a part of a picture in its place: a copy, under the same caption and with that part of its mask. The whole one
    stays where it is and is left out."""
    paths = chosen.paths
    async with here.edits:
        found = sets.in_set(paths, file)
        name = await asyncio.to_thread(crop_picture, paths, found, Area(**asked.model_dump()))
    return await _one(here, chosen, name)


@router.post("/dataset/{file:path}/exclude")
async def exclude(here: Here, chosen: ChosenSet, file: str, asked: ExcludeIn | None = None) -> ShownPicture:
    """Throws a picture out of the set; the next training is without it."""
    paths = chosen.paths
    async with here.edits:
        found = sets.in_set(paths, file)

        def work() -> None:
            with set_history.recorded(paths, f"excluded {found.name}"):
                sets.exclude(paths, found, asked.reason if asked else "")

        await asyncio.to_thread(work)
    return await _one(here, chosen, file)


@router.post("/dataset/{file:path}/restore")
async def restore(here: Here, chosen: ChosenSet, file: str) -> ShownPicture:
    """Takes a picture back that was thrown out."""
    paths = chosen.paths
    async with here.edits:
        found = sets.in_set(paths, file)

        def work() -> None:
            with set_history.recorded(paths, f"took {found.name} back"):
                sets.restore(paths, found)

        await asyncio.to_thread(work)
    return await _one(here, chosen, file)


async def _one(here: Site, chosen: MemberSet, file: str) -> ShownPicture:
    """One picture as it stands now."""

    def read_one() -> ShownPicture:
        for each in sets.pictures_of(chosen.paths, here.looks, sets.read_records(chosen.paths)):
            if each.file == file:
                return _shown(chosen, each)
        raise NotFoundError(f"{quote(file[:120])} has gone.")

    return await asyncio.to_thread(read_one)


def _count(files: list[str]) -> str:
    return files[0] if len(files) == 1 else f"{len(files)} pictures"
