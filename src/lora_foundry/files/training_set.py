"""What is in a training set: the one answer to that question, for every stage, the dashboard and the REST API. Each
picture below images/ is listed with the file of its caption, its mask and its repeats, and what was left out is listed
with the reason. The folder is the truth; nothing in it is changed here."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from lora_foundry.domain.dataset import Crop, Crops, GenerationMetadata
from lora_foundry.domain.exclusion import Exclusions
from lora_foundry.domain.triage import Triage
from lora_foundry.errors import InputError
from lora_foundry.extras import install_command
from lora_foundry.files.hashing import readable_hash
from lora_foundry.files.images import is_readable, read_record, wants_heic_extra
from lora_foundry.files.paths import RunPaths
from lora_foundry.files.sidecars import CAPTION_SUFFIXES, FolderNames, captions_beside, new_caption
from lora_foundry.files.storage import move_file, read_model

LeftOutCode = Literal["excluded", "unreadable", "format", "link", "twice", "mask", "other", "archive"]
# What people expect to be a picture and this program cannot read.
_OTHER_PICTURES = frozenset(
    [
        ".svg",
        ".svgz",
        ".eps",
        ".ai",
        ".pdf",
        ".wmf",
        ".emf",
        ".jxl",
        ".kra",
        ".xcf",
        ".clip",
        ".cr2",
        ".cr3",
        ".nef",
        ".arw",
        ".dng",
        ".orf",
        ".rw2",
        ".raf",
        ".mp4",
        ".webm",
        ".mov",
        ".mkv",
        ".avi",
    ]
)
# Kinds that Pillow reads and nobody means by a picture of a training set.
_NOT_MEANT = frozenset({".fit", ".fits", ".h5", ".hdf", ".mpg", ".mpeg"})
_ARCHIVES = frozenset({".zip", ".7z", ".rar", ".tar", ".tgz", ".gz"})
# What other programs keep of a picture beside it; nobody misses it in a set.
_NOTES_BESIDE = frozenset({".aae", ".xmp", ".npz"})
_SYSTEM = frozenset(
    [
        "__macosx",
        "@eadir",
        "#recycle",
        "$recycle.bin",
        "system volume information",
        "lost+found",
        "thumbs.db",
        "ehthumbs.db",
        "desktop.ini",
    ]
)
_MASK_FOLDERS = frozenset({"masks", "mask"})
_MASK_ENDING = re.compile(r"[-_. ](?:masklabel|condlabel|mask)$", re.IGNORECASE)
_ALWAYS_MASK = re.compile(r"-(?:masklabel|condlabel)$", re.IGNORECASE)  # OneTrainer's
_REPEATS = re.compile(r"(\d+)_.")


@dataclass(frozen=True)
class SetPicture:
    """One picture of the set.

    name: its path below images/, with slashes; how every record and page calls it. generated: made here, by the plan;
    crop: cut here from another picture; reference: the character's reference image, put in here by a run that draws after
    it; any other file is its owner's and is never moved or changed. captions: the files that hold its caption, the one
    that counts first. target: where a caption is written. repeats: what its folder's name
    asks for (10_elara); 0 where it asks for none.
    """

    name: str
    path: Path
    generated: bool
    target: Path
    captions: tuple[Path, ...] = ()
    mask: Path | None = None
    repeats: int = 0
    crop: Crop | None = None
    reference: bool = False

    @property
    def own(self) -> bool:
        """Whether a person put it here."""
        return not self.generated and self.crop is None and not self.reference

    @property
    def caption(self) -> Path | None:
        """The file that holds the caption, if there is one."""
        return self.captions[0] if self.captions else None


@dataclass(frozen=True)
class LeftOut:
    """A file that is not trained on, and why, as a word for programs and a sentence for people."""

    name: str
    code: LeftOutCode
    reason: str


@dataclass(frozen=True)
class TrainingSet:
    """The set as it stands in its folder, in the order of its training: images/ itself first, then its folders. others:
    files that nobody would take for a picture, which only those who bring a folder want to hear of."""

    pictures: tuple[SetPicture, ...]
    left_out: tuple[LeftOut, ...] = ()
    others: tuple[LeftOut, ...] = ()

    @property
    def own(self) -> tuple[SetPicture, ...]:
        """The pictures that a person brought."""
        return tuple(picture for picture in self.pictures if picture.own)

    def names(self) -> set[str]:
        """The names of all pictures."""
        return {picture.name for picture in self.pictures}

    def find(self, name: str) -> SetPicture | None:
        """A picture by its name."""
        return next((picture for picture in self.pictures if picture.name == name), None)


def list_set(paths: RunPaths) -> TrainingSet:
    """Every picture in the folder, those included that a person has thrown out or that turned out to be unreadable."""
    return _list(paths.images, paths)


def read_set(paths: RunPaths, excluded: bool = False) -> TrainingSet:
    """The set as it is trained on. `excluded` lists what a person has thrown out among the pictures.

    Raises InputError for a picture whose exclusion has to be checked and that cannot be read.
    """
    listing = list_set(paths)
    exclusions = read_model(paths.exclusions, Exclusions) or Exclusions()
    triaged = {each.name: each for each in (read_model(paths.triage, Triage) or Triage()).pictures}
    kept, out = [], list(listing.left_out)
    for picture in listing.pictures:
        known = None if picture.generated else triaged.get(picture.name)
        if not excluded and is_excluded(exclusions, picture):
            reason = exclusions.files[picture.name].reason or "excluded by hand"
            out.append(LeftOut(picture.name, "excluded", reason))
        elif known is not None and (fault := known.unreadable(picture.path)):
            out.append(LeftOut(picture.name, "unreadable", fault))
        else:
            kept.append(picture)
    for crop in [picture for picture in kept if picture.crop and picture.crop.by_hand]:
        if not _is_of_its_source(crop, listing, paths):
            kept.remove(crop)
            out.append(LeftOut(crop.name, "excluded", "the picture that it was cut from was drawn anew"))
    present = {picture.name for picture in kept}
    present |= {picture.crop.source for picture in kept if picture.crop and picture.crop.by_hand}
    alone = [picture for picture in kept if picture.crop and picture.crop.source not in present]
    for crop in alone:  # of a picture that was thrown out or has gone
        kept.remove(crop)
        out.append(LeftOut(crop.name, "excluded", "the picture that it was cut from is not in the set"))
    return TrainingSet(tuple(kept), tuple(out))


def _is_of_its_source(picture: SetPicture, listing: TrainingSet, paths: RunPaths) -> bool:
    """Whether what a person cut a crop from is still the drawing that they saw. A person's own picture may go: what they
    cut from it is theirs."""
    crop = picture.crop
    if crop is None or not has_planned_name(paths.images / crop.source, paths):
        return True
    source = listing.find(crop.source)
    return source is not None and readable_hash(source.path) == crop.source_sha256


def is_excluded(exclusions: Exclusions, picture: SetPicture) -> bool:
    """Whether a person has thrown this very picture out; a new one under its name is another."""
    return picture.name in exclusions.files and exclusions.covers(picture.name, readable_hash(picture.path))


def was_cut(picture: SetPicture) -> bool:
    """Whether a picture is a crop that nobody has changed since it was cut; a changed one is a person's."""
    crop = picture.crop
    return crop is not None and (not crop.sha256 or readable_hash(picture.path) == crop.sha256)


def picture_path(folder: Path, name: str) -> Path | None:
    """The file of a picture by its name below `folder`, as a listing gives it; None for what no listing could hold,
    such as a hidden file, a way out of the folder, or no picture."""
    parts = name.split("/")
    if any(
        not part or part[0] == "." or "\0" in part or (os.name == "nt" and set(part) & set("\\:"))
        for part in parts
    ):
        return None
    path = folder.joinpath(*parts)
    try:
        return path if is_readable(path) and path.is_file() else None
    except (OSError, ValueError):
        return None


def pictures_in(folder: Path) -> TrainingSet:
    """The pictures in any folder of a person's and below it, such as regularisation pictures."""
    return _list(folder, None)


def is_generated(path: Path, paths: RunPaths) -> bool:
    """Whether a file in images/ was made here: it bears a name that the plan gives, and says so itself or is known from
    an earlier run."""
    return has_planned_name(path, paths) and (read_record(path) is not None or path.name in _recorded(paths))


def _recorded(paths: RunPaths) -> frozenset[str]:
    """The names of the pictures that the generate stage says it made."""
    metadata = read_model(paths.generation_metadata, GenerationMetadata)
    return frozenset(picture.file for picture in metadata.pictures) if metadata else frozenset()


def has_planned_name(path: Path, paths: RunPaths) -> bool:
    """Whether a path is one that the plan gives to pictures."""
    number = path.stem.removeprefix(f"{paths.slug}_")
    planned = path.suffix == ".png" and number != path.stem and number.isdecimal()
    return planned and path.parent == paths.images


def move_picture(paths: RunPaths, source: Path, target: Path, captions: bool = True) -> None:
    """Moves a picture that was drawn or cut here, and with it what belongs to it: its captions beside it, and its mask to
    masks/ in the target's folder, so that no other picture is given them."""
    beside = captions_beside(source.name, _names(source.parent)) if captions else []
    for caption in map(source.with_name, beside):
        move_file(caption, target.with_name(target.name[: -len(target.suffix)] + caption.suffix))
    if source.is_relative_to(paths.images):
        place = _mask_folder(source, paths)
        for name in _masks_among(source.name, _names(place)):
            move_file(place / name, target.parent / "masks" / f"{target.stem}{Path(name).suffix}")
    move_file(source, target)


# Walking --------------------------------------------------------------------------------------------------------


@dataclass
class _Walk:
    """What was met on the way through a folder."""

    root: Path
    paths: RunPaths | None
    crops: dict[str, Crop]
    recorded: frozenset[str] | None = None
    pictures: list[SetPicture] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    others: list[LeftOut] = field(default_factory=list)
    folders: set[Path] = field(default_factory=set)
    files: dict[tuple[int, int], str] = field(default_factory=dict)
    masks: dict[Path, FolderNames] = field(default_factory=dict)

    def masks_in(self, place: Path) -> FolderNames:
        if place not in self.masks:
            self.masks[place] = _names(place)
        return self.masks[place]

    def is_reference(self, path: Path) -> bool:
        """Whether it is the run's reference image itself; one that somebody has changed is theirs."""
        paths = self.paths
        if paths is None or path != paths.reference_in_set or not paths.reference.is_file():
            return False
        return readable_hash(path) == readable_hash(paths.reference)

    def is_generated(self, path: Path) -> bool:
        if self.paths is None or not has_planned_name(path, self.paths):
            return False
        if self.recorded is None:
            self.recorded = _recorded(self.paths)
        return path.name in self.recorded or read_record(path) is not None


class _Folder:
    """What lies in one folder, and the pictures' stems and the masks among it."""

    def __init__(self, entries: Sequence[Path]) -> None:
        pictures = [entry for entry in entries if is_readable(entry)]
        self.names = FolderNames(entry.name for entry in entries)
        self.stems = Counter(entry.stem for entry in pictures)
        self.masks: dict[str, Path] = {}
        for entry in pictures:
            if ending := _MASK_ENDING.search(entry.stem):
                self.masks.setdefault(entry.stem[: ending.start()], entry)


def _list(folder: Path, paths: RunPaths | None) -> TrainingSet:
    known = None if paths is None else read_model(paths.crops, Crops)
    walk = _Walk(folder, paths, {} if known is None else known.files)
    _walk_folder(folder, 0, walk)
    return TrainingSet(tuple(walk.pictures), tuple(walk.left_out), tuple(walk.others))


def _walk_folder(folder: Path, repeats: int, walk: _Walk) -> None:
    """Lists a folder's pictures, then those of the folders in it; links are followed, each folder once."""
    real = folder.resolve()
    if real in walk.folders:
        return
    walk.folders.add(real)
    entries = sorted(_visible(folder))
    beside = _Folder(entries)
    for entry in entries:
        if not entry.is_dir():
            _add(entry, beside, repeats, walk)
    for entry in entries:
        if entry.is_dir() and entry.name.lower() not in _MASK_FOLDERS:
            _walk_folder(entry, folder_repeats(entry.name) or repeats, walk)


def _add(path: Path, beside: _Folder, repeats: int, walk: _Walk) -> None:
    """Lists one file as a picture, or as left out, or, where it belongs to a picture, not at all."""
    name = path.relative_to(walk.root).as_posix()
    if not is_readable(path) or path.suffix.lower() in _NOT_MEANT:
        if (left := passed_over(name)) is not None:
            (walk.left_out if left.code == "format" else walk.others).append(left)
        return
    if _is_mask(path, beside.stems):
        return
    try:
        stat = path.stat()
    except OSError:
        walk.left_out.append(LeftOut(name, "link", "the link leads nowhere"))
        return
    known = walk.files.setdefault((stat.st_dev, stat.st_ino), name)
    if known != name:
        walk.left_out.append(LeftOut(name, "twice", f"it is the same file as {known}"))
        return
    captions = tuple(path.with_name(each) for each in captions_beside(path.name, beside.names))
    walk.pictures.append(
        SetPicture(
            name=name,
            path=path,
            generated=walk.is_generated(path),
            target=captions[0] if captions else new_caption(path, shared=beside.stems[path.stem] > 1),
            captions=captions,
            mask=_mask(path, beside, walk),
            repeats=repeats,
            crop=walk.crops.get(name),
            reference=walk.is_reference(path),
        )
    )


def passed_over(name: str) -> LeftOut | None:
    """What there is to say of a file that is no picture here, by its name; None for captions and for what other programs
    keep beside pictures."""
    suffix = Path(name).suffix.lower()
    if wants_heic_extra(Path(name)):
        reason = f"HEIC pictures need a reader; install it with: {install_command('heic')}"
        return LeftOut(name, "format", reason)
    if suffix in _OTHER_PICTURES:
        return LeftOut(
            name, "format", f"{Path(name).suffix} files are not read; save it as PNG, JPEG or WebP"
        )
    if suffix in _ARCHIVES:
        return LeftOut(name, "archive", "it is not opened there; unpack it first")
    if suffix in CAPTION_SUFFIXES or suffix in _NOTES_BESIDE:
        return None
    return LeftOut(name, "other", "it is no picture")


def folder_repeats(name: str) -> int:
    """The repeats that a folder's name asks for, as sd-scripts reads it (10_elara); 0 where it asks for none."""
    found = _REPEATS.match(name)
    return int(found[1]) if found else 0


def is_visible(name: str) -> bool:
    """Whether a file or folder of this name is neither hidden nor what systems leave behind."""
    return not name.startswith(".") and name.lower() not in _SYSTEM


def _visible(folder: Path) -> Iterator[Path]:
    """What is in a folder but for hidden files and what systems leave behind. Raises InputError where it cannot be
    read; a folder that is not there is empty."""
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if is_visible(entry.name):
                    yield folder / entry.name
    except FileNotFoundError:
        return
    except OSError as error:
        raise InputError(f"The folder {folder} cannot be read ({error.strerror or error}).") from error


def _names(folder: Path) -> FolderNames:
    return FolderNames(path.name for path in _visible(folder))


# Masks ------------------------------------------------------------------------------------------------------------


def _is_mask(path: Path, stems: Counter[str]) -> bool:
    """Whether a file is the mask of a picture beside it, by the names that other trainers give."""
    if _ALWAYS_MASK.search(path.stem):
        return True
    found = _MASK_ENDING.search(path.stem)
    return found is not None and path.stem[: found.start()] in stems


def _mask(path: Path, beside: _Folder, walk: _Walk) -> Path | None:
    """The picture's mask: in masks/ under its name, or beside it. One that could be another picture's too is none's."""
    if walk.paths is not None:
        place = _mask_folder(path, walk.paths)
        if found := _masks_among(path.name, walk.masks_in(place), shared=beside.stems[path.stem] > 1):
            return place / found[0]
    return beside.masks.get(path.stem)


def mask_place(picture: Path, paths: RunPaths) -> Path:
    """Where the mask of a picture in images/ lies under the picture's own name."""
    return paths.masks / picture.relative_to(paths.images)


def _mask_folder(picture: Path, paths: RunPaths) -> Path:
    return mask_place(picture, paths).parent


def _masks_among(picture: str, files: FolderNames, shared: bool = False) -> list[str]:
    """Those of `files` that bear a picture's name, whatever their kind, the whole name first; `shared`: another picture
    has the same name but for its ending, so only a mask with the whole name is surely this one's."""
    same = files.of(Path(picture).stem)
    whole = [*(name for name in same if name == picture), *files.of(picture)]
    stem = [name for name in same if name not in whole]
    return [name for name in (whole if shared else [*whole, *stem]) if is_readable(Path(name))]
