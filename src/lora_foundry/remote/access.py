"""What hosts that do not work at a run do with its files: give what people bring before a worker needs it, fetch what a page
or a command shows, store what a person changed, and delete. Each is one call with the settings, and does nothing where
there is no storage."""

from __future__ import annotations

import hashlib
import logging
import re
import shutil
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path

from lora_foundry.domain.cast import Member
from lora_foundry.domain.character import check_name
from lora_foundry.domain.run import Run
from lora_foundry.errors import InputError
from lora_foundry.files.hashing import file_hash
from lora_foundry.files.installed import files_of, keep_older
from lora_foundry.files.locks import FolderLock, owner_of
from lora_foundry.files.paths import CHECKPOINTS, RunPaths
from lora_foundry.files.storage import make_folder, read_model, write_aside, write_bytes, write_model
from lora_foundry.files.versions import current_run, make_room, working_folder
from lora_foundry.remote.folders import move_places
from lora_foundry.remote.keeper import RunStorage, folder_name, own_files
from lora_foundry.remote.manifests import GIVEN, Chain, Manifest, all_kept, version_chain, versions
from lora_foundry.remote.objects import ObjectStore, utc_now
from lora_foundry.settings import Settings

logger = logging.getLogger(__name__)
UNUSED = timedelta(days=7)  # an attempt at work may not have named its contents yet
DELETED = timedelta(days=30)  # as long as the bin keeps what was deleted
_REFERENCE = re.compile(r"[0-9a-f]{24}\.\w{2,5}")
_REFERENCES = "references/"


def open_storage(settings: Settings) -> ObjectStore | None:
    """The storage that the settings name, if they name one. Raises InputError, MissingExtraError."""
    return ObjectStore(settings.storage) if settings.storage else None


# What people bring ---------------------------------------------------------------------------------------------------


def give(settings: Settings, paths: RunPaths) -> None:
    """Stores the own pictures of a folder, with their captions and masks, for whichever version is to be made of them."""
    store = open_storage(settings)
    if store is None:
        return
    chain = Chain(store, folder_name(paths.root, settings), GIVEN)
    files = {path.relative_to(paths.root).as_posix(): store.put_file(path) for path in own_files(paths)}
    while files:
        now = chain.newest() or Manifest()
        after = Manifest(number=now.number + 1, files={**now.files, **files})
        if after.files == now.files or chain.append(after):
            return


def share_reference(settings: Settings, given: str | None) -> str | None:
    """Stores a reference picture by its hash; returns the file of that name in this home, which every other host finds
    under the same name in its own. Unchanged where there is no storage, or no such file."""
    store = open_storage(settings)
    picture = None if given is None else settings.datasets_dir / given
    if store is None or picture is None or not picture.is_file():
        return given
    content = picture.read_bytes()
    name = f"{hashlib.sha256(content).hexdigest()[:24]}{picture.suffix.lower()}"
    store.create(_REFERENCES + name, content)
    kept = _references(settings) / name
    return str(kept if kept.is_file() else write_bytes(kept, content))


def shared(settings: Settings, given: str | None, members: Sequence[Member]) -> dict[str, object]:
    """The reference picture of a request and those of a cast's characters, each shared: what the request says instead."""
    cast = []
    for member in members:
        own = member.character.reference_image
        kept = share_reference(settings, None if own is None else str(own))
        changed = {"reference_image": None if kept is None else Path(kept)}
        cast.append(member.model_copy(update={"character": member.character.model_copy(update=changed)}))
    return {"reference_image": share_reference(settings, given), "members": tuple(cast)}


def find_reference(settings: Settings, given: str | None) -> str | None:
    """Where a reference picture that another host's row names lies here, fetched if need be; what no storage knows is
    returned as it was."""
    name = "" if given is None else re.split(r"[/\\]", given)[-1]
    if not settings.storage or not _REFERENCE.fullmatch(name):
        return given
    kept = _references(settings) / name
    if not kept.is_file():
        store = open_storage(settings)
        content = None if store is None else store.read(_REFERENCES + name)
        if content is None or hashlib.sha256(content).hexdigest()[:24] != name.partition(".")[0]:
            return given
        write_bytes(kept, content)
    return str(kept)


def _references(settings: Settings) -> Path:
    return settings.home.expanduser().absolute() / "references"


def newest_version(settings: Settings, folder: Path) -> int:
    """The newest version of a character, here or on any host; 1 where there is none."""
    here = current_run(folder)
    store = open_storage(settings)
    known = [] if store is None else versions(store, folder_name(folder, settings))
    return max([1 if here is None else here.version, *known[:1]])


# What is shown and changed -------------------------------------------------------------------------------------------


def bring(settings: Settings, name: str, version: int | None) -> bool:
    """Brings a version's folder here, all but its checkpoints, with its LoRA into this host's folder of LoRAs; and stores
    what a person changed in it here. False where the storage knows no such version, or a run is at work in the folder.
    Raises StorageError, BackendError."""
    store = open_storage(settings)
    if store is None:
        return False
    home = make_folder(settings.datasets_dir / check_name(name))
    version = version or newest_version(settings, home)
    manifest = version_chain(store, folder_name(home, settings), version).newest()
    if manifest is None or manifest.deleted or manifest.run is None:
        return False
    places = {"dataset_dir": working_folder(home, version), "lora_dir": settings.loras_dir}
    run = Run.model_validate(manifest.run).model_copy(update=places)
    storage = RunStorage(store, run, settings)
    paths = storage.paths
    make_folder(paths.root)
    try:
        lock = FolderLock(paths.lock).__enter__()
    except InputError:
        return False  # a worker on this host has it all
    try:
        make_room(paths, run)
        if read_model(paths.run_file, Run) != run:
            write_model(paths.run_file, run)
        folder = storage.folder()
        advanced = folder.record.number != manifest.number
        folder.fetch(manifest, storage.places, keep=lambda path: True, wanted=_is_shown)
        changes = folder.upload(folder.snapshot(), _is_shown)
        if changes.put or changes.gone:
            storage.write(folder, changes, None)
        if advanced:
            _install(store, manifest, storage)
    finally:
        lock.__exit__(None, None, None)
    return True


def store_changes(settings: Settings, name: str, version: int | None) -> None:
    """Stores what a person changed here in a version that this host has fetched before. Raises what `bring` does."""
    if settings.storage:
        folder = working_folder(settings.datasets_dir / name, version)
        if RunPaths(folder, "").stored.is_file():
            bring(settings, name, version)


def _is_shown(path: str) -> bool:
    return not path.startswith(f"{RunPaths(Path(), '').training.name}/{CHECKPOINTS}/")


def _install(store: ObjectStore, manifest: Manifest, storage: RunStorage) -> None:
    """Puts the LoRA of a run where this host has its own; one of the same character stays under its version's name, and
    nobody else's is touched."""
    run = storage.run
    files = files_of(run.lora_dir, run.output_name)
    blob, trained = manifest.lora.get(files.lora.name), storage.paths.chosen_lora
    if (
        blob is None
        or not trained.is_file()
        or (files.lora.is_file() and file_hash(files.lora) == blob.sha256)
    ):
        return
    if files.lora.exists() and owner_of(files.lora) != run.character.name:
        logger.warning("%s is not %s's; its LoRA stays at %s", files.lora, run.character.name, trained)
        return
    keep_older(files, trained, make_folder(run.lora_dir), run.output_name)
    others = [each for each in manifest.places if each != storage.places]
    for path in (files.metadata, files.card, files.preview, files.lora):
        if (content := manifest.lora.get(path.name)) is None:
            continue
        if content.sha256 == blob.sha256 and file_hash(trained) == blob.sha256:
            write_aside(path, lambda aside: shutil.copyfile(trained, aside))
        else:
            store.get_file(content, path)
            move_places(path, others, storage.places)


# Deleting ------------------------------------------------------------------------------------------------------------


def mark_deleted(settings: Settings, name: str, version: int | None, deleted: bool = True) -> None:
    """Says that a person deleted a version, or put it back; its contents stay as long as the bin keeps such things."""
    store = open_storage(settings)
    if store is None or version is None:
        return
    chain = version_chain(store, folder_name(settings.datasets_dir / name, settings), version)
    while (now := chain.newest()) is not None and now.deleted != deleted:
        told: Mapping[str, object] = {"number": now.number + 1, "deleted": deleted, "at": utc_now()}
        if chain.append(now.model_copy(update=told)):
            return


def clean(store: ObjectStore) -> tuple[int, int]:
    """Removes what was deleted for longer than the bin keeps it, and contents that no manifest has named for a week;
    returns how many manifests and how many contents."""
    now, used, gone = utc_now(), set[str](), []
    newest = all_kept(store)
    for key, manifest in newest.items():
        if manifest.deleted and now - manifest.at > DELETED:
            gone.append(key)
        else:
            used |= {blob.sha256 for blob in (*manifest.files.values(), *manifest.lora.values())}
    store.remove(gone)
    unused = [sha for sha, at in store.blobs().items() if sha not in used and now - at > UNUSED]
    store.remove_blobs(unused)
    return len(gone), len(unused)
