"""The versions of a character. `<datasets>/<Character>/` holds the current one, as the contract has it; another request
for the same name begins a new version, and what stood there is first kept whole under `versions/NN/`. What still fits is
taken over from it: the stages decide that, as they do when a run goes on. Old folders are version 1."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from lora_foundry.domain.character import Character
from lora_foundry.domain.run import MEMBERS, Again, Run
from lora_foundry.files.paths import RunPaths
from lora_foundry.files.storage import read_model, remove_file, remove_tree, storage_errors, write_model
from lora_foundry.files.training_set import list_set, was_cut

# What the stages write aside and rename, and nobody else changes: a second name of such a file costs nothing. Everything
# else is copied, the pictures of the set above all: whoever edits one of them in place means the version at hand.
_LINKED = frozenset({"training", "evaluation", "rounds", "rejected", "regularisation"})
_LARGE = (".png", ".safetensors")


def current_run(root: Path) -> Run | None:
    """The run whose version stands in a character's folder; None where there is none yet."""
    return read_model(RunPaths(root, "").run_file, Run)


def folder_of(root: Path, version: int | None) -> Path:
    """Where a version lies, whether or not it has begun: in the character's folder if it is the current one, or the
    first; else under `versions/`. None means the current one."""
    now = current_run(root)
    if version is None or (now is not None and now.version == version):
        return root
    kept = RunPaths(root, "").version(version)
    return kept if now is not None or kept.exists() else root  # the current one may have been deleted


def working_folder(root: Path, version: int | None) -> Path:
    """`folder_of` for a run that is to work there: a version that is newer than the current one takes its place."""
    now = current_run(root)
    if version is not None and now is not None and version > now.version:
        return root
    return folder_of(root, version)


def same_request(one: Run, other: Run) -> bool:
    """Whether two runs ask for the same, wherever they work."""
    places = {"version", "replaces", "dataset_dir", "lora_dir"}
    return one.model_dump(mode="json", exclude=places) == other.model_dump(mode="json", exclude=places)


def continued(now: Run | None, run: Run, again: Again) -> int | None:
    """The version on which a request goes on, beside the run that stands in its folder; None for a new one."""
    return now.version if now is not None and (again == "continue" or same_request(now, run)) else None


def numbered(run: Run, again: Again) -> Run:
    """The run as the version that it makes, where no table of tasks gives out the numbers."""
    now = current_run(run.dataset_dir)
    version = continued(now, run, again) or (now.version + 1 if now else 1)
    return run.model_copy(update={"version": version, "replaces": again == "replace"})


def make_room(paths: RunPaths, run: Run) -> None:
    """Before a newer version begins in a folder: keeps what is there as the version that it is, or, for a run that
    replaces it, removes it. Call it with the folder's lock held; broken off, it is done again."""
    earlier = current_run(paths.root)
    if earlier is None or earlier.version >= run.version:
        return
    if run.replaces:
        _clear(paths)
        return
    kept = paths.version(earlier.version)
    if kept.exists():
        return
    aside = kept.with_name(f".{kept.name}.keeping")
    with storage_errors(kept):
        if aside.exists():
            remove_tree(aside)
        aside.mkdir(parents=True)
        for entry in _entries(paths):
            _keep(entry, aside / entry.name, linked=entry.name in _LINKED)
        write_model(aside / paths.run_file.name, earlier.model_copy(update={"dataset_dir": kept}))
        aside.rename(kept)


def _clear(paths: RunPaths) -> None:
    """Removes a version's files but for a person's own pictures, also those of a cast's members."""
    apart = _remove_drawn(paths)
    for entry in _entries(paths):
        if entry.name == MEMBERS and entry.is_dir():
            for folder in entry.iterdir():
                _clear(RunPaths(folder, Character(name=folder.name).slug))
        elif entry not in apart:
            remove_tree(entry) if entry.is_dir() else entry.unlink(missing_ok=True)


def _remove_drawn(paths: RunPaths) -> set[Path]:
    """Removes the pictures that were drawn, cut or taken for a reference, with their captions; returns what is a person's
    and stays: the folders of their pictures and masks, and which of these they have thrown out. What they cut themselves from
    a picture of theirs is theirs. Nothing where no file of theirs is there."""
    listed = list_set(paths)
    if not listed.own and not listed.left_out:
        return set()
    own = {picture.name for picture in listed.own}
    for picture in listed.pictures:
        by_hand = picture.crop is not None and picture.crop.by_hand and picture.crop.source in own
        if picture.generated or picture.reference or (was_cut(picture) and not by_hand):
            masks = [picture.mask] if picture.crop and picture.mask else []
            for file in (picture.path, *picture.captions, *masks):
                remove_file(file)
    return {paths.images, paths.masks, paths.exclusions}


def version_entries(paths: RunPaths) -> list[Path]:
    """All of the version in a folder, to be moved away: the whole folder where no earlier version lies in it."""
    if not paths.root.is_dir():
        return []
    if not paths.versions.is_dir():
        return [paths.root]
    return [*_entries(paths), paths.run_file]


def _entries(paths: RunPaths) -> list[Path]:
    """What belongs to the version that stands in the folder."""
    apart = {paths.versions.name, paths.lock.name, paths.run_file.name}
    return sorted(entry for entry in paths.root.iterdir() if entry.name not in apart)


def _keep(source: Path, target: Path, linked: bool) -> None:
    """A copy of a file or folder; `linked`: large files under a second name. Links are kept as links."""
    if source.is_dir() and not source.is_symlink():
        target.mkdir()
        for entry in source.iterdir():
            _keep(entry, target / entry.name, linked)
        return
    if linked and source.suffix.lower() in _LARGE and not source.is_symlink():
        try:
            os.link(source, target)
            return
        except OSError:
            pass  # a file system without hard links
    shutil.copy2(source, target, follow_symlinks=False)
