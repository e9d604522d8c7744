"""A person's own pictures on their way into a set: copied from folders and zip files, with the captions and masks that
lie beside them, under their own names. Where they come from nothing is changed, and nothing that is in the set already is
written over."""

from __future__ import annotations

import lzma
import os
import shutil
import stat
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import NamedTuple

from lora_foundry.domain.run import Again, Run
from lora_foundry.errors import InputError
from lora_foundry.files.hashing import file_hash, readable_hash
from lora_foundry.files.images import is_readable, read_picture
from lora_foundry.files.locks import FolderLock
from lora_foundry.files.paths import RunPaths
from lora_foundry.files.sidecars import CAPTION_SUFFIXES, FolderNames, captions_beside
from lora_foundry.files.storage import check_room, in_gb, make_folder, storage_errors, write_aside
from lora_foundry.files.training_set import (
    LeftOut,
    SetPicture,
    TrainingSet,
    has_planned_name,
    is_visible,
    passed_over,
    pictures_in,
)
from lora_foundry.files.versions import continued, current_run, make_room

MOST_FILES = 20_000
# Of a zip file's content, before it is unpacked, and of what is sent to the dashboard for one set: 5000 photographs of 3 MB.
MOST_BYTES = 16 * 1000**3
_PIECE = 1 << 20
_LONGEST = 240  # bytes of a name; file systems end at 255, and some of ours are a little longer
_NO_PICTURES = ("other", "archive")
_NAMED = 5  # files in a sentence
_EDGE = 64  # pixels that are enough to tell whether a picture can be read
_DEEPEST = 32  # folders in one another
# What a zip file that is cut, damaged or of an unknown kind raises, each compression in its own way; an OSError is bzip2's.
_BROKEN = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError, OSError)


class Imported(NamedTuple):
    """What came into the set: how many pictures were copied, how many were there already, and what was left out."""

    copied: int
    present: int
    left_out: tuple[LeftOut, ...]

    def notes(self) -> list[str]:
        """What was left out and why: a sentence for each file that was meant as a picture, one for all others."""
        others = [each for each in self.left_out if each.code in _NO_PICTURES]
        meant = [each for each in self.left_out if each.code not in _NO_PICTURES]
        told = [f"left out: {_plain(each.name)}: {each.reason}" for each in meant]
        return [*told, _of_others(others)] if others else told


def _of_others(others: Sequence[LeftOut]) -> str:
    verb = "file is no picture and was" if len(others) == 1 else "files are no pictures and were"
    said = f"{len(others)} {verb} left out: {_some([each.name for each in others])}"
    archives = [each.name for each in others if each.code == "archive"]
    if len(archives) == 1:
        return f"{said}. {_plain(archives[0])} is not opened there; unpack it first"
    return (
        f"{said}. Archives are not opened there; unpack them first: {_some(archives)}" if archives else said
    )


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(map(_plain, names[:_NAMED])) + more


def _plain(name: str) -> str:
    """A name without what would steer a terminal, as a zip file from anywhere may hold it."""
    return "".join(each if each.isprintable() else "?" for each in name)


def import_pictures(sources: Sequence[Path], paths: RunPaths) -> Imported:
    """Copies the pictures of folders and zip files into images/, each source's folders with it. A picture that is in
    the set already, from an earlier call, is not copied again.

    Raises InputError for a source that is no folder, zip or picture or holds no picture, and, with nothing copied, where
    not one of all pictures can be read; StorageError.
    """
    make_folder(paths.images)
    copier, waiting = _Copier(paths), iter(sources)
    with ExitStack() as held:
        for found in _until_readable(waiting, paths.images, held):
            copier.take(found)
    for source in waiting:
        with _opened(source, paths.images) as found:
            copier.take(found)
    return copier.imported()


def _until_readable(sources: Iterator[Path], target: Path, held: ExitStack) -> list[TrainingSet]:
    """What is in the sources up to the first with a picture that can be read; `held` keeps them open. Raises InputError
    where there is none in any: nothing could be trained on."""
    opened: list[TrainingSet] = []
    first = ""
    for source in sources:
        found = held.enter_context(_opened(source, target))
        opened.append(found)
        for picture in found.pictures:
            try:
                read_picture(picture.path, within=_EDGE)
            except InputError as error:
                first = first or _of_source(str(error), picture, source)
            else:
                return opened
    count = sum(len(found.pictures) for found in opened)
    if count:
        words = (
            "The only picture cannot be read"
            if count == 1
            else f"None of the {count} pictures can be read; the first"
        )
        raise InputError(f"{words}: {first}")
    return opened


def _of_source(fault: str, picture: SetPicture, source: Path) -> str:
    """A sentence about a picture that names it as it was given, not where a zip file was unpacked."""
    if picture.path.is_relative_to(source):
        return fault
    return f"{_plain(picture.name)} in {source}{fault.removeprefix(str(picture.path))}"


def take_pictures(sources: Sequence[Path], paths: RunPaths, run: Run, again: Again) -> Imported:
    """`import_pictures` for those who put a run into the task table and do not hold its folder's lock. An earlier version
    that the run does not go on in is kept first, so that it stays without these pictures. Raises InputError where a run is at
    work in the folder, too."""
    make_folder(paths.root)
    with FolderLock(paths.lock):
        _keep_earlier(paths, run, again)
        return import_pictures(sources, paths)


def _keep_earlier(paths: RunPaths, run: Run, again: Again) -> None:
    now = current_run(paths.root)
    if now is not None and again == "new" and continued(now, run, again) is None:
        make_room(paths, run.model_copy(update={"version": now.version + 1}))


def take_all_pictures(
    wanted: Sequence[tuple[Sequence[Path], RunPaths]], paths: RunPaths, run: Run, again: Again
) -> Imported:
    """The same for the members of a cast, whose folder `paths` is."""
    make_folder(paths.root)
    with FolderLock(paths.lock):
        _keep_earlier(paths, run, again)
        taken = [import_pictures(sources, member) for sources, member in wanted]
    left_out = tuple(left for each in taken for left in each.left_out)
    return Imported(sum(each.copied for each in taken), sum(each.present for each in taken), left_out)


@contextmanager
def _opened(source: Path, target: Path) -> Iterator[TrainingSet]:
    """`_files_of`, with a picture at least. Raises InputError, StorageError."""
    with _files_of(source, target) as found:
        if not found.pictures:
            left = [*found.left_out, *found.others]
            reasons = "; ".join(f"{_plain(each.name)}: {each.reason}" for each in left[:3])
            raise InputError(f"There is no picture in {source}." + (f" {reasons}." if reasons else ""))
        yield found


@contextmanager
def _files_of(source: Path, target: Path) -> Iterator[TrainingSet]:
    """What is in a source; a zip file is unpacked for the time of the block, where there is room for it and for its copy
    below `target`. Raises InputError, StorageError."""
    if source.is_dir():
        yield pictures_in(source)
    elif source.is_file() and is_readable(source):
        beside = pictures_in(source.parent)
        yield TrainingSet(tuple(picture for picture in beside.pictures if picture.path == source))
    elif source.is_file() and zipfile.is_zipfile(source):
        with TemporaryDirectory(prefix="lora-foundry-") as place:
            passed = _unpack(source, Path(place), target)
            found = pictures_in(Path(place))
            yield replace(found, others=(*found.others, *passed))
    else:
        what = "is neither a folder, a zip file nor a picture" if source.exists() else "is not there"
        raise InputError(f"{source} {what}; give a folder of pictures, a zip file of them, or a picture.")


def _unpack(source: Path, place: Path, target: Path) -> list[LeftOut]:
    """Unpacks what may belong to a set, pictures and captions, and returns the others. Raises InputError for a damaged
    file, for one that is too large, and for names that lead out of it, StorageError, also where there is no room."""
    with _read_errors(source), zipfile.ZipFile(source) as archive:
        members = [each for each in archive.infolist() if not each.is_dir()]
        if len(members) > MOST_FILES:
            raise InputError(f"{source} holds {len(members):,} files; at most {MOST_FILES:,} are read.")
        total = sum(each.file_size for each in members)
        if total > MOST_BYTES:
            raise InputError(
                f"{source} unpacks to {in_gb(total)}; at most {in_gb(MOST_BYTES)} are read. Divide it, or unpack it and "
                "give the folder."
            )
        check_room(place, total)
        if target.stat().st_dev == place.stat().st_dev:
            total *= 2  # the copy in the set comes beside it
        check_room(target, total)
        for member in members:
            _unpack_one(archive, member, place, source)
    return [left for each in members if (left := _not_unpacked(each)) is not None]


def _not_unpacked(member: zipfile.ZipInfo) -> LeftOut | None:
    name = PurePosixPath(member.filename.replace("\\", "/"))
    if _belongs(Path(name.name)) or not all(map(is_visible, name.parts)):
        return None
    return passed_over(str(name))


def _unpack_one(archive: zipfile.ZipFile, member: zipfile.ZipInfo, place: Path, source: Path) -> None:
    name = PurePosixPath(member.filename.replace("\\", "/"))
    if name.is_absolute() or ".." in name.parts or "\0" in member.filename:
        raise InputError(
            f"{source} holds the name {member.filename[:80]!r}, which leads out of it; pack it again."
        )
    if stat.S_ISLNK(member.external_attr >> 16) or not _belongs(Path(name.name)):
        return
    if any(len(part.encode()) > _LONGEST for part in name.parts) or len(name.parts) > _DEEPEST:
        raise InputError(
            f"{source} holds the name {member.filename[:80]!r}, which is too long for a file system; rename it."
        )
    target = place.joinpath(*name.parts)
    make_folder(target.parent)
    with storage_errors(target), target.open("wb") as file:
        for piece in _pieces(archive, member, source):
            file.write(piece)


def _pieces(archive: zipfile.ZipFile, member: zipfile.ZipInfo, source: Path) -> Iterator[bytes]:
    """A member's content, no more of it than the archive promised. Raises InputError where it cannot be read."""
    with _read_errors(source), archive.open(member) as packed:
        left = member.file_size
        while left > 0 and (piece := packed.read(min(left, _PIECE))):
            left -= len(piece)
            yield piece


@contextmanager
def _read_errors(source: Path) -> Iterator[None]:
    """zipfile's errors as ours; what is no fault of the file passes."""
    try:
        yield
    except _BROKEN as error:
        raise InputError(f"The zip file {source} cannot be read ({error}); pack it again.") from error
    except RuntimeError as error:  # zipfile's word for a password that is missing
        raise InputError(f"The zip file {source} needs a password; pack it again without one.") from error


def _belongs(name: Path) -> bool:
    return is_readable(name) or name.suffix.lower() in CAPTION_SUFFIXES


class _Copier:
    """Copies pictures into a set; it knows what lies there, so that thousands do not take the square of their time."""

    def __init__(self, paths: RunPaths) -> None:
        self._paths = paths
        self._names: dict[Path, FolderNames] = {}
        self._copied = self._present = 0
        self._left_out: list[LeftOut] = []

    def take(self, found: TrainingSet) -> None:
        """Copies the pictures of one source."""
        self._left_out += [*found.left_out, *found.others]
        for picture in found.pictures:
            if self.copy(picture):
                self._copied += 1
            else:
                self._present += 1

    def imported(self) -> Imported:
        """What has become of all sources so far."""
        return Imported(self._copied, self._present, tuple(self._left_out))

    def copy(self, picture: SetPicture) -> bool:
        """Copies one picture with its captions and mask; False where it is in the set already. A name that another
        picture has, or that the drawn pictures get, is changed by a number, and so is one under which a caption or a
        mask lies that is not this picture's: it would be written over, or taken for this one's."""
        digest = readable_hash(picture.path)
        for target in _places(picture, self._paths):
            if target.exists():
                if file_hash(target) == digest:
                    return False
                continue
            belongings = _belongings(picture, target)
            if not self._is_free(target, belongings):
                continue
            for path, source in [*belongings.items(), (target, picture.path)]:
                _copy_file(source, path)
                self._in(path.parent).add(path.name)
            return True
        raise AssertionError("there is always a free name")

    def _in(self, folder: Path) -> FolderNames:
        if folder not in self._names:
            names = os.listdir(folder) if folder.is_dir() else []
            self._names[folder] = FolderNames(names)
        return self._names[folder]

    def _is_free(self, target: Path, belongings: Mapping[Path, Path]) -> bool:
        """Whether nothing lies at the places of a picture's belongings, nor any other caption that would be taken for
        its; what is the same is no matter, as an import that was broken off leaves it."""
        taken = {target.with_name(name) for name in captions_beside(target.name, self._in(target.parent))}
        taken |= {path for path in belongings if path.exists()}
        return all(
            path in belongings and file_hash(path) == readable_hash(belongings[path]) for path in taken
        )


def _belongings(picture: SetPicture, target: Path) -> dict[Path, Path]:
    """Where the captions and the mask of a picture go if it becomes `target`, and where they are."""
    found = {}
    for caption in picture.captions:
        ending = caption.name[len(picture.path.stem) :]
        if caption.name.startswith(picture.path.name):  # x.png.txt
            ending = picture.path.suffix + caption.name[len(picture.path.name) :]
        found[target.with_name(target.stem + ending)] = caption
    if picture.mask is not None:
        ending = picture.mask.stem[len(picture.path.stem) :]
        found[target.with_name(f"{target.stem}{ending}{picture.mask.suffix}")] = picture.mask
    return found


def _places(picture: SetPicture, paths: RunPaths) -> Iterator[Path]:
    """Where the picture may lie in images/: under its own name, else with a number."""
    first = paths.images.joinpath(*PurePosixPath(picture.name).parts)
    if not has_planned_name(first, paths):
        yield first
    number = 2
    while True:
        yield first.with_name(f"{first.stem}-{number}{first.suffix}")
        number += 1


def _copy_file(source: Path, target: Path) -> None:
    """A copy of the content, never a second name of the same file: what happens to one must not happen to the other."""
    with storage_errors(target):
        write_aside(target, lambda aside: shutil.copyfile(source, aside))
