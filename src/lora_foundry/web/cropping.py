"""Cropping one picture of a set by hand. The part that a person chose becomes a picture of its own, with their caption and
mask, and takes the place of the whole one, which is left out and stays as it is; undoing that is a step like any other."""

from __future__ import annotations

import re
from itertools import count
from typing import NamedTuple

from lora_foundry.domain.dataset import Crop, Crops
from lora_foundry.errors import InputError
from lora_foundry.files.cropping import cut
from lora_foundry.files.hashing import readable_hash
from lora_foundry.files.images import picture_size
from lora_foundry.files.paths import RunPaths
from lora_foundry.files.storage import make_folder, read_model, remove_file, write_model, write_text
from lora_foundry.files.training_set import SetPicture, is_excluded, mask_place, was_cut
from lora_foundry.web import set_history
from lora_foundry.web.dataset import caption_of, exclude, read_exclusions
from lora_foundry.web.problems import ConflictError

LEAST_SIDE = 16  # pixels; less shows nothing
_MOST_STEM = 100  # characters of a name; file systems end at 255 bytes
_NUMBERED = re.compile(r"\.crop(-\d+)?$")


class Area(NamedTuple):
    """A part of a picture, in pixels of the picture as it is shown, upright."""

    left: int
    top: int
    width: int
    height: int


def crop_picture(paths: RunPaths, picture: SetPicture, area: Area) -> str:
    """Puts a part of a picture in its place; the new picture's name. Raises InputError for a part that is none of it, or
    all of it, ConflictError for a picture that is left out."""
    if is_excluded(read_exclusions(paths), picture):
        raise ConflictError(f"{picture.name} is left out of the set; restore it first, then crop it.")
    box = _box(area, picture_size(picture.path), picture.name)
    name = _free_name(paths, picture.name)
    crop = _as_crop(picture, box)
    words = f"cropped {picture.name}"
    with set_history.recorded(paths, words, added=name):
        known = read_model(paths.crops, Crops) or Crops()
        # Known for what it is before it is there, so that no stage takes half a step for a picture of a person's.
        write_model(paths.crops, Crops(files={**known.files, name: crop}))
        try:
            make_folder((paths.images / name).parent)
            done = cut(paths, picture, name, crop)
        except BaseException:
            write_model(paths.crops, known)
            remove_file(paths.images / name)
            raise
        write_model(paths.crops, Crops(files={**known.files, name: done}))
        if caption := caption_of(picture):
            write_text((paths.images / name).with_suffix(".txt"), caption + "\n")
        exclude(paths, picture, f"cropped: {name} is in its place")
    return name


def _free_name(paths: RunPaths, name: str) -> str:
    """Beside the picture, so that it is shown as often: `x.crop.png`, where no file of the folder is called so, whatever its
    kind; captions and masks go by it."""
    beside = paths.images / name
    stem = _NUMBERED.sub("", beside.stem)[:_MOST_STEM]
    folders = [each for each in (beside.parent, mask_place(beside, paths).parent) if each.is_dir()]
    taken = {file.stem.lower() for folder in folders for file in folder.iterdir()}
    names = (f"{stem}.crop" if number == 1 else f"{stem}.crop-{number}" for number in count(1))
    free = next(each for each in names if each.lower() not in taken)
    return beside.with_name(f"{free}.png").relative_to(paths.images).as_posix()


def _box(area: Area, size: tuple[int, int], name: str) -> tuple[int, int, int, int]:
    right, bottom = area.left + area.width, area.top + area.height
    if right > size[0] or bottom > size[1]:
        raise InputError(f"{name} has {size[0]} x {size[1]} pixels; choose a part of it.")
    if min(area.width, area.height) < LEAST_SIDE:
        raise InputError(f"A part of {area.width} x {area.height} pixels shows nothing; choose a larger one.")
    if (area.width, area.height) == size:
        raise InputError("That is the whole picture; choose a part of it.")
    return area.left, area.top, right, bottom


def _as_crop(picture: SetPicture, box: tuple[int, int, int, int]) -> Crop:
    """Of the first picture, where this one is itself a crop that nobody has changed: what it shows is told by that one."""
    mask = "" if picture.mask is None else readable_hash(picture.mask)
    earlier = picture.crop
    if earlier is None or not was_cut(picture):
        return Crop(
            source=picture.name,
            source_sha256=readable_hash(picture.path),
            framing=None,
            box=box,
            mask_sha256=mask,
        )
    left, top = earlier.box[:2]
    moved = (box[0] + left, box[1] + top, box[2] + left, box[3] + top)
    return earlier.model_copy(update={"framing": None, "box": moved, "mask_sha256": mask, "sha256": ""})
