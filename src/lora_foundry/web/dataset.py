"""A training set as it stands in its folder, and a person's changes to it. The files are the truth: a picture that
somebody put there by hand, or a caption edited in another program, shows up like any other."""

from __future__ import annotations

import re
from collections import Counter, OrderedDict
from collections.abc import Callable
from datetime import UTC, datetime
from itertools import combinations
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import BaseModel

from lora_foundry.domain.captions import one_line
from lora_foundry.domain.curation import CurationResult, Verdict
from lora_foundry.domain.dataset import Caption, GenerationMetadata, PictureRecord, TaggingResults
from lora_foundry.domain.exclusion import Exclusion, Exclusions
from lora_foundry.domain.run import MEMBERS, Run
from lora_foundry.errors import InputError
from lora_foundry.files import training_set as files
from lora_foundry.files.hashing import file_hash
from lora_foundry.files.images import is_readable, picture_size, read_record
from lora_foundry.files.paths import RunPaths
from lora_foundry.files.sidecars import MOST_BYTES, read_caption
from lora_foundry.files.storage import read_model, storage_errors, write_model, write_text
from lora_foundry.files.training_set import list_set, picture_path, pictures_in
from lora_foundry.web.problems import ConflictError, NotFoundError

MOST_CAPTION = 4000
MOST_PAIRS = 100
_MOST_COMPARED = 1000
_MOST_LOOKS = 50_000
Standing = Literal["included", "excluded", "rejected"]


class Look(NamedTuple):
    """What a picture file says of itself without being decoded."""

    width: int
    height: int
    record: PictureRecord | None


class Looks:
    """Remembers what files said, as long as they do not change."""

    def __init__(self) -> None:
        self._kept: OrderedDict[Path, tuple[int, int, Look]] = OrderedDict()

    def at(self, path: Path) -> Look | None:
        """None for what is no picture, or is gone."""
        try:
            stat = path.stat()
            known = self._kept.get(path)
            if known is None or known[:2] != (stat.st_mtime_ns, stat.st_size):
                known = (stat.st_mtime_ns, stat.st_size, _look(path))
                self._kept[path] = known
                if len(self._kept) > _MOST_LOOKS:
                    self._kept.popitem(last=False)
        except (OSError, InputError):
            return None
        return known[2]


def _look(path: Path) -> Look:
    return Look(*picture_size(path), read_record(path))


class SetPicture(BaseModel):
    """One picture. file: its name below images/, or in rejected/. own: a person brought it; cut_from: the own picture that
    it is a part of. edited: a person wrote the caption. shot: its words by axis.

    reason: why it was left out, or what is wrong with it although it is in.
    """

    file: str
    status: Standing
    own: bool
    cut_from: str = ""
    caption: str | None
    edited: bool
    reason: str
    width: int
    height: int
    seed: int | None
    attempt: int
    shot: list[str]
    modified: datetime


class TagCount(BaseModel):
    tag: str
    count: int


class NearPair(BaseModel):
    """Two pictures of the set that look alike: `distance` of their 64-bit hashes' bits differ."""

    a: str
    b: str
    distance: int


class SetRecords(NamedTuple):
    """What the stages wrote about a set; whatever is not there yet is empty."""

    tagging: TaggingResults | None
    curation: CurationResult | None
    metadata: GenerationMetadata | None
    exclusions: Exclusions
    run: Run | None


def read_records(paths: RunPaths) -> SetRecords:
    return SetRecords(
        read_model(paths.tagging_results, TaggingResults),
        read_model(paths.curation, CurationResult),
        read_model(paths.generation_metadata, GenerationMetadata),
        read_exclusions(paths),
        run_of(paths),
    )


def run_of(paths: RunPaths) -> Run | None:
    """The run that a set belongs to; of a member of a cast, that member's. None where it has not begun."""
    run = read_model(paths.run_file, Run)
    if run is None and paths.root.parent.name == MEMBERS:
        cast = read_model(RunPaths(paths.root.parent.parent, "").run_file, Run)
        runs = cast.member_runs if cast else ()
        return next((each for each in runs if each.character.name == paths.root.name), None)
    return run


def read_exclusions(paths: RunPaths) -> Exclusions:
    return read_model(paths.exclusions, Exclusions) or Exclusions()


def pictures_of(paths: RunPaths, looks: Looks, records: SetRecords) -> list[SetPicture]:
    """Every picture of the set, then every rejected one, by name."""
    verdicts: dict[str, Verdict] = {}
    if records.curation is not None:
        listed = (*records.curation.accepted, *records.curation.rejected, *records.curation.own)
        verdicts = {each.file: each for each in listed}
    written = {each.file: each for each in records.tagging.captions} if records.tagging else {}
    found = []
    for folder in (paths.images, paths.rejected):
        listed_set = list_set(paths) if folder == paths.images else pictures_in(folder)
        alone = _crops_left_out(paths, listed_set)
        for picture in listed_set.pictures:
            look = looks.at(picture.path)
            if look is not None:
                verdict = verdicts.get(f"{folder.name}/{picture.name}")
                shown = _picture(
                    picture, look, verdict, records, written.get(picture.name), folder == paths.rejected
                )
                if shown.status == "included" and picture.name in alone:
                    shown.status, shown.reason = "excluded", alone[picture.name]
                found.append(shown)
    return found


def _crops_left_out(paths: RunPaths, listed: files.TrainingSet) -> dict[str, str]:
    """The crops that are not trained on, since what they were cut from is not, and why."""
    crops = {picture.name for picture in listed.pictures if picture.crop}
    if not crops:
        return {}
    return {each.name: each.reason for each in files.read_set(paths).left_out if each.name in crops}


def picture_files(folder: Path) -> list[Path]:
    """The pictures in a folder, by name; none where there is no folder. Links are left out."""
    try:
        files = [path for path in folder.iterdir() if is_readable(path) and path.name[0] != "."]
    except OSError:
        return []
    return sorted(path for path in files if not path.is_symlink())


def _picture(
    picture: files.SetPicture,
    look: Look,
    verdict: Verdict | None,
    records: SetRecords,
    ours: Caption | None,
    rejected: bool,
) -> SetPicture:
    stat = picture.path.stat()
    status: Standing = "included"
    reason = "; ".join(each.text for each in verdict.reasons) if verdict else ""
    if rejected:
        status = "rejected"
    elif picture.name in records.exclusions.files and files.is_excluded(records.exclusions, picture):
        status, reason = "excluded", records.exclusions.files[picture.name].reason or "excluded by hand"
    caption = caption_of(picture)
    record = look.record
    return SetPicture(
        file=picture.name,
        status=status,
        own=picture.own and not rejected,
        cut_from=picture.crop.source if picture.crop else "",
        caption=caption,
        edited=caption is not None and ours is not None and (ours.source == "edited" or ours.text != caption),
        reason=reason,
        width=look.width,
        height=look.height,
        seed=record.request.seed if record else None,
        attempt=record.attempt if record else 0,
        shot=list(record.shot) if record else [],
        modified=datetime.fromtimestamp(stat.st_mtime, UTC),
    )


def caption_of(picture: files.SetPicture) -> str | None:
    """What stands in the caption's file, on one line; None where there is none that can be read."""
    if picture.caption is None:
        return None
    try:
        return read_caption(picture.caption)
    except InputError:
        return None


def tags_of(caption: str | None) -> list[str]:
    return [tag for part in (caption or "").split(",") if (tag := part.strip())]


def count_tags(pictures: list[SetPicture]) -> list[TagCount]:
    """How many captions of the set hold each tag, the commonest first."""
    counts = Counter(
        tag for each in pictures if each.status == "included" for tag in dict.fromkeys(tags_of(each.caption))
    )
    return [TagCount(tag=tag, count=count) for tag, count in counts.most_common(500)]


def near_pairs(pictures: list[SetPicture], records: SetRecords) -> list[NearPair]:
    """The pairs that curation's first test for duplicates lets through to its second, the nearest first."""
    if records.curation is None or records.run is None:
        return []
    included = {each.file for each in pictures if each.status == "included"}
    verdicts = (*records.curation.accepted, *records.curation.own)
    hashes = [
        (name, int(each.measures.hash, 16))
        for each in verdicts[:_MOST_COMPARED]
        if (name := each.file.partition("/")[2]) in included and each.measures.hash
    ]
    limit = records.run.recipe.curate.duplicate_distance
    pairs = [
        (distance, first, second)
        for (first, one), (second, other) in combinations(hashes, 2)
        if (distance := (one ^ other).bit_count()) <= limit
    ]
    return [
        NearPair(a=first, b=second, distance=distance)
        for distance, first, second in sorted(pairs)[:MOST_PAIRS]
    ]


# A person's changes ---------------------------------------------------------------------------------------------


def find_picture(paths: RunPaths, file: str) -> Path:
    """A picture of the set or a rejected one, by its name. Raises NotFoundError."""
    for folder in (paths.images, paths.rejected):
        path = picture_path(folder, file)
        if path is not None:
            return path
    raise NotFoundError(f"There is no picture {file[:120]!r} in this set.")


def leads_out(paths: RunPaths, path: Path) -> bool:
    """Whether a picture of the set is a link to a file elsewhere. Of such a file only what is seen in it is served."""
    return paths.root.resolve() not in path.resolve().parents


def in_set(paths: RunPaths, file: str) -> files.SetPicture:
    """A picture of images/. Raises NotFoundError, also for one that curation rejected."""
    if picture_path(paths.images, file) is None:
        find_picture(paths, file)
        raise NotFoundError(f"{file[:120]!r} was rejected by curation and is not in the set.")
    found = list_set(paths).find(file)
    if found is None:
        raise NotFoundError(f"There is no picture {file[:120]!r} in this set.")
    return found


def check_caption(text: str) -> str:
    """The caption on one line. Raises InputError for what a trainer could not use."""
    caption = " ".join(text.split())
    if not any(character.isalnum() for character in caption):
        raise InputError("The caption is empty; write what the picture shows, or exclude the picture.")
    if len(caption) > MOST_CAPTION or not caption.isprintable():
        raise InputError(f"A caption is at most {MOST_CAPTION} printable characters.")
    return caption


def write_caption(picture: files.SetPicture, text: str, previous: str | None = None) -> str:
    """Writes a person's caption. Raises ConflictError where it is no longer `previous`."""
    caption = check_caption(text)
    present = caption_of(picture)
    if previous is not None and present is not None and one_line(previous) != present:
        raise ConflictError(f"The caption of {picture.name} has been changed meanwhile; it now is: {present}")
    _own_target(picture)
    write_text(picture.target, caption + "\n")
    return caption


def _own_target(picture: files.SetPicture) -> None:
    """A caption's file that is a link would be replaced, never followed; say so instead of surprising its owner. One that is
    too large to be a caption could not be brought back."""
    if picture.target.is_symlink():
        raise ConflictError(f"The caption of {picture.name} is a link; it is changed where it points to.")
    if picture.caption is not None and picture.caption.stat().st_size > MOST_BYTES:
        raise ConflictError(f"{picture.caption.name} is too large to be a caption; move it away first.")


def change_tags(
    paths: RunPaths, add: list[str], remove: list[str], names: list[str] | None, trigger: str
) -> list[str]:
    """Adds tags at the end of captions and removes others from them; the files that changed.

    Nothing is written unless all of it can be. Raises InputError for a tag that is none, for the trigger, and where
    a caption would be left empty.
    """
    new, old = [_tag(each) for each in add], {_tag(each).lower() for each in remove}
    if trigger and trigger.lower() in old:
        raise InputError(
            f"{trigger!r} is the trigger word; without it in the captions nothing calls the LoRA."
        )

    def changed(before: str) -> str:
        tags = [tag for tag in tags_of(before) if tag.lower() not in old]
        known = {tag.lower() for tag in tags}
        tags += [tag for tag in dict.fromkeys(new) if tag.lower() not in known]
        after = ", ".join(tags)
        return before if after == ", ".join(tags_of(before)) else after

    return _rewrite(paths, names, changed)


def replace_words(paths: RunPaths, find: str, put: str, names: list[str] | None, trigger: str) -> list[str]:
    """Puts other words in the place of some, whatever their case, in captions; the files that changed. Nothing is written
    unless all of it can be. Raises InputError for nothing to find, or where the trigger would go."""
    wanted = " ".join(find.split())
    if not wanted:
        raise InputError("Say which words are to be replaced.")
    pattern = re.compile(re.escape(wanted), re.IGNORECASE)

    def changed(before: str) -> str:
        text = pattern.sub(lambda _: " ".join(put.split()), before)
        after = ", ".join(tags_of(text)) if not put.strip() else text
        if trigger and trigger.lower() in before.lower() and trigger.lower() not in after.lower():
            raise InputError(
                f"{trigger!r} is the trigger word; without it in the captions nothing calls the LoRA."
            )
        return after

    return _rewrite(paths, names, changed)


def _rewrite(paths: RunPaths, names: list[str] | None, changed: Callable[[str], str]) -> list[str]:
    """Writes what `changed` makes of captions, all or none of them; the files that differ now."""
    listed = {picture.name: picture for picture in list_set(paths).pictures}
    chosen = list(listed.values()) if names is None else [_listed(paths, listed, each) for each in names]
    changes: list[tuple[files.SetPicture, str]] = []
    for picture in chosen:
        before = caption_of(picture)
        if before is not None and (after := changed(before)) != before:
            _own_target(picture)
            changes.append((picture, check_caption(after)))
    for picture, after in changes:
        write_text(picture.target, after + "\n")
    return [picture.name for picture, _ in changes]


def _listed(paths: RunPaths, listed: dict[str, files.SetPicture], name: str) -> files.SetPicture:
    return listed[name] if name in listed else in_set(paths, name)


def _tag(text: str) -> str:
    tag = " ".join(text.split())
    if not tag or "," in tag or not tag.isprintable() or len(tag) > 200:
        raise InputError(f"{text[:80]!r} is no tag: one to 200 printable characters without a comma.")
    return tag


def exclude(paths: RunPaths, picture: files.SetPicture, reason: str) -> None:
    """Throws a picture out; it stays in its folder."""
    with storage_errors(picture.path):
        mark = Exclusion(
            sha256=file_hash(picture.path), reason=" ".join(reason.split()), at=datetime.now(UTC)
        )
    known = read_exclusions(paths)
    write_model(paths.exclusions, Exclusions(files=known.files | {picture.name: mark}))


def restore(paths: RunPaths, picture: files.SetPicture) -> None:
    """Takes a picture back into the set; one that is in stays in."""
    known = read_exclusions(paths)
    if picture.name in known.files:
        rest = {file: mark for file, mark in known.files.items() if file != picture.name}
        write_model(paths.exclusions, Exclusions(files=rest))
