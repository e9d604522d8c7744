"""What is done around a stage on a host that shares no folder with the others: before it, the run's folder is brought here;
while it works, what it has made is stored every few seconds, so that another host can go on after a death; at its end all of
it is. An attempt marks the manifest as its own at its beginning; from then on no earlier one can write to it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType

from lora_foundry.domain.publication import Publication
from lora_foundry.domain.run import MEMBERS, Run
from lora_foundry.errors import BackendError, FoundryError, TakenOverError
from lora_foundry.files.hashing import file_hash
from lora_foundry.files.locks import claim
from lora_foundry.files.paths import VERSIONS, RunPaths
from lora_foundry.files.storage import read_model, write_model
from lora_foundry.files.training_set import list_set
from lora_foundry.files.versions import current_run
from lora_foundry.remote.folders import Changes, Folder
from lora_foundry.remote.manifests import (
    GIVEN,
    Chain,
    Fence,
    Manifest,
    Places,
    version_chain,
    versions,
)
from lora_foundry.remote.objects import Blob, ChangedError, ObjectStore, Traffic, utc_now
from lora_foundry.settings import Settings

logger = logging.getLogger(__name__)
EVERY = 5.0  # seconds between two looks at what a stage has made
PATIENCE = 120.0  # seconds for which the end of a stage waits for a storage that does not answer
LAST_PATIENCE = 15.0  # the same for a stage that is stopped or failed, whose worker waits for it
PAUSE = 3.0


class RunStorage:
    """A run's folder on this host, and its chain of manifests. Use it with the folder's lock held."""

    def __init__(self, store: ObjectStore, run: Run, settings: Settings) -> None:
        self.store, self.run = store, run
        self.name = folder_name(run.dataset_dir, settings)
        self.chain = version_chain(store, self.name, run.version)
        self.given = Chain(store, self.name, GIVEN)
        self.paths = RunPaths(run.dataset_dir, run.character.slug)
        self.places = Places(dataset_dir=str(run.dataset_dir), lora_dir=str(run.lora_dir))

    def folder(self) -> Folder:
        """The folder as it was in step last; read anew, since another process may have brought it into step."""
        return Folder(self.store, self.paths, self.chain.prefix)

    def bring_in(self) -> Folder:
        """Makes the folder this version's, with what the storage knows of it or, for a new one, of the version before, as
        it would stand in a folder that all hosts share. Raises what `claim` does, StorageError, BackendError."""
        manifest = self.chain.newest()
        if manifest is None:
            self._bring_earlier()
        claim(self.paths, self.run)
        folder = self.folder()
        if manifest is not None:
            folder.fetch(manifest, self.places, keep=self._is_persons())
        self._take_given(0 if manifest is None else manifest.given)
        return folder

    def write(
        self,
        folder: Folder,
        changes: Changes,
        fence: Fence | None,
        *,
        begins: bool = False,
        last: bool = False,
    ) -> None:
        """Writes changes of the folder as the next manifest. fence: of the attempt that asks, None for a person. begins:
        the attempt takes the manifest for its own; last: what it installed is stored, too. Raises TakenOverError where a
        later attempt has."""
        lora = self._installed() if last else {}
        given = self.given.newest() if begins else None
        while True:
            now = self.chain.newest() or Manifest()
            _check(now, fence, begins)
            files = changes.applied_to({} if now.deleted else now.files)
            after = now.model_copy(
                update={
                    "number": now.number + 1,
                    "files": files,
                    "lora": {**now.lora, **lora},
                    "run": self.run.model_dump(mode="json"),
                    "places": tuple(dict.fromkeys((*now.places, self.places))),
                    "fence": fence if begins else now.fence,
                    "given": given.number if given else now.given,
                    "deleted": False,
                    "host": Manifest().host,
                    "at": utc_now(),
                }
            )
            same = files == now.files and after.lora == now.lora and not begins
            if same or self.chain.append(after):
                folder.settle(now.number if same else after.number, changes)
                return

    def _bring_earlier(self) -> None:
        """Fetches the version before, where this host has none that is as new: a new version takes over what still fits."""
        here = current_run(self.paths.root)
        for number in versions(self.store, self.name):
            if number >= self.run.version:
                continue
            if here is not None and here.version >= number:
                return
            chain = version_chain(self.store, self.name, number)
            manifest = chain.newest()
            if manifest is None or manifest.deleted or manifest.run is None:
                continue
            earlier = Run.model_validate(manifest.run)
            Folder(self.store, self.paths, chain.prefix).fetch(manifest, self.places, keep=self._is_persons())
            write_model(self.paths.run_file, self.run_here(earlier))
            return

    def run_here(self, run: Run) -> Run:
        """A run that another host has written, in this one's folders."""
        return run.model_copy(update={"dataset_dir": self.run.dataset_dir, "lora_dir": self.run.lora_dir})

    def _take_given(self, taken: int) -> None:
        """Fetches what people brought on other hosts since; what lies here under such a name stays."""
        given = self.given.newest()
        if given is None or given.number <= taken:
            return
        for path, blob in given.files.items():
            if not (target := self.paths.root / path).exists():
                self.store.get_file(blob, target)

    def _is_persons(self) -> _Persons:
        return _Persons(self.paths)

    def _installed(self) -> dict[str, Blob]:
        """The files of the LoRA that this run has installed on this host, stored."""
        published = read_model(self.paths.publication, Publication)
        if published is None or published.lora is None or not published.lora.is_file():
            return {}
        if file_hash(published.lora) != published.sha256:
            return {}  # another run's, by now
        files = (published.lora, published.preview, published.metadata, published.card)
        return {path.name: self.store.put_file(path) for path in files if path is not None and path.is_file()}


class _Persons:
    """Tells which files of a folder a person brought; nothing takes these away but a person."""

    def __init__(self, paths: RunPaths) -> None:
        kept = {paths.exclusions, *own_files(paths)}
        self._kept = {path.relative_to(paths.root).as_posix() for path in kept}

    def __call__(self, path: str) -> bool:
        return path in self._kept


def own_files(paths: RunPaths) -> Iterator[Path]:
    """The pictures that a person brought, with their captions and masks; in a cast's folder, those of every character."""
    members = paths.root / MEMBERS
    inside = [RunPaths(each, each.name.lower().replace(" ", "_")) for each in sorted(members.glob("*"))]
    for each in (paths, *inside):
        if each.images.is_dir():
            for picture in list_set(each).own:
                yield from (picture.path, *picture.captions, *([picture.mask] if picture.mask else []))


class Keeper:
    """Stores what a stage makes while it works. Entered with the folder's lock held; on leaving, all of it is stored, or
    the error says that it was not."""

    def __init__(self, storage: RunStorage, fence: Fence) -> None:
        self._storage, self._fence = storage, fence
        self._folder: Folder | None = None
        self._looked = 0.0
        self._storing: threading.Thread | None = None
        self._fault: FoundryError | None = None

    def __enter__(self) -> Keeper:
        self._folder = self._storage.bring_in()
        looks = self._folder.snapshot()
        self._storage.write(self._folder, self._folder.upload(looks), self._fence, begins=True)
        self._looked = time.monotonic()
        return self

    def look(self) -> None:
        """Stores what there is now, beside the stage's work, if the last time is long enough ago. Called by the stage itself
        between two steps, so that nothing is half done. Raises TakenOverError where another attempt has begun."""
        if isinstance(self._fault, TakenOverError):
            raise self._fault
        busy = self._storing is not None and self._storing.is_alive()
        if busy or time.monotonic() - self._looked < EVERY or self._folder is None:
            return
        looks = self._folder.snapshot()
        self._storing = threading.Thread(target=self._store, args=(looks,), daemon=True)
        self._storing.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._storing is not None:
            self._storing.join()
        if isinstance(self._fault, TakenOverError):
            if error is None:
                raise self._fault
            return
        if error is None:
            self._finish(PATIENCE)
            return
        try:
            self._finish(LAST_PATIENCE)
        except FoundryError as fault:
            logger.warning("What the stage had made could not be stored: %s", fault)

    @property
    def traffic(self) -> Traffic:
        """What was moved so far."""
        return self._storage.store.traffic

    def _store(self, looks: Mapping[str, tuple[int, int, int]]) -> None:
        """One look's changes. A fault is no concern of the stage's as long as it works."""
        assert self._folder is not None
        try:
            self._storage.write(self._folder, self._folder.upload(looks), self._fence)
            self._fault = None
        except (OSError, ChangedError):
            logger.debug("Files went while they were stored; the next look takes what is there then")
        except FoundryError as error:
            self._fault = error
            logger.warning("Not stored for now: %s", error)
        finally:
            self._looked = time.monotonic()

    def _finish(self, patience: float) -> None:
        """Stores all of it, trying for `patience` seconds."""
        assert self._folder is not None
        until = time.monotonic() + patience
        while True:
            try:
                changes = self._folder.upload(self._folder.snapshot())
                self._storage.write(self._folder, changes, self._fence, last=True)
                return
            except (BackendError, ChangedError) as error:
                if time.monotonic() > until:
                    raise BackendError(
                        f"{error} This host waited {patience:.0f} s for it. What the stage made lies in "
                        f"{self._storage.paths.root} and is stored when the task is tried again here."
                    ) from error
                time.sleep(min(PAUSE, patience / 5))


def _check(now: Manifest, fence: Fence | None, begins: bool) -> None:
    """Raises TakenOverError where the manifest is a later attempt's."""
    if fence is None or now.fence is None or now.fence.lease == fence.lease:
        return
    if not begins or now.fence.at > fence.at:
        raise TakenOverError(
            f"Another host ({now.host}) has begun this stage anew since; nothing that this attempt makes is stored."
        )


def folder_name(root: Path, settings: Settings) -> str:
    """What all hosts call a character's folder: its path below the datasets' folder, whichever version lies in `root`."""
    home = settings.datasets_dir.resolve()
    inside = root.resolve().relative_to(home)
    if inside.parent.name == VERSIONS:
        inside = inside.parent.parent
    return inside.as_posix()
