"""A local folder and its manifest, brought into step: what is missing here is fetched, what was changed here is stored. A
hidden file in the folder says with which manifest it was in step last, and how each file looked then: so a change on either
side is told from one on the other, and a file that nobody touched is not read again."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from lora_foundry.files.hashing import file_hash
from lora_foundry.files.paths import CACHE, RECORDING, SAMPLE_REQUEST, RunPaths
from lora_foundry.files.storage import (
    make_folder,
    read_model,
    remove_file,
    storage_errors,
    write_aside,
    write_bytes,
    write_model,
)
from lora_foundry.remote.manifests import Manifest, Places
from lora_foundry.remote.objects import Blob, ObjectStore

logger = logging.getLogger(__name__)
AT_ONCE = 8  # transfers
_NOWHERE = (-1, -1, -1)


class Known(BaseModel):
    """A file as it was when it was in step: the content that the manifest names, and size, time and number of the file
    that held it here (-1 where another one stands here, or none)."""

    model_config = ConfigDict(frozen=True)

    sha256: str
    mark: tuple[int, int, int]
    size: int


class Record(BaseModel):
    """Which manifest of which chain a folder was in step with."""

    chain: str = ""
    number: int = 0
    files: dict[str, Known] = {}


class Folder:
    """A run's folder on this host. chain: the storage's address and the chain's place in it."""

    def __init__(self, store: ObjectStore, paths: RunPaths, chain: str) -> None:
        self.store, self.paths = store, paths
        self._chain = f"{store.address} {chain}"
        found = read_model(paths.stored, Record) or Record()
        # Of another version that stood here: what it had in step is stored as that one's, and may be replaced.
        self._seen = found.files if found.chain.startswith(store.address) else {}
        self.record = found if found.chain == self._chain else Record(chain=self._chain)

    # Fetching ----------------------------------------------------------------------------------------------------

    def fetch(
        self,
        manifest: Manifest,
        places: Places,
        *,
        keep: Callable[[str], bool] = lambda path: False,
        wanted: Callable[[str], bool] = lambda path: True,
    ) -> None:
        """Makes the folder what the manifest says. wanted: what is fetched at all; keep: which changes of this host stay
        where the manifest says otherwise. A host that wrote the manifest itself goes on with all that it has since
        changed. Raises StorageError, BackendError."""
        goes_on = self.record.number == manifest.number
        local = {} if goes_on else scan(self.paths.root)
        files = {path: blob for path, blob in manifest.files.items() if wanted(path)}
        known: dict[str, Known] = dict(self.record.files) if goes_on else {}
        missing: dict[str, Blob] = {}
        for path, blob in files.items():
            if goes_on:
                if path not in known:
                    missing[path] = blob
            elif (found := self._as_it_is(path, blob, local.get(path), keep(path))) is not None:
                known[path] = found
            else:
                missing[path] = blob
        if not goes_on:
            extra = [path for path in local if path not in manifest.files and wanted(path)]
            self._remove(path for path in extra if self._is_untouched(path, local[path]) or not keep(path))
        known |= self._fetch_all(missing, [each for each in manifest.places if each != places], places)
        self._write(manifest.number, known)

    def _as_it_is(self, path: str, blob: Blob, mark: tuple[int, int, int] | None, keep: bool) -> Known | None:
        """What is known of a file that need not be fetched; None for one that must be."""
        before = self.record.files.get(path)
        untouched = self._is_untouched(path, mark)
        if mark is None:  # gone here: by somebody's hand, if the manifest still says what it said
            deleted = before is not None and before.sha256 == blob.sha256 and keep
            return Known(sha256=blob.sha256, mark=_NOWHERE, size=blob.size) if deleted else None
        sha256 = self._seen[path].sha256 if untouched else file_hash(self.paths.root / path)
        if sha256 == blob.sha256:
            return Known(sha256=sha256, mark=mark, size=blob.size)
        if keep and not untouched:
            return Known(sha256=blob.sha256, mark=_NOWHERE, size=blob.size)
        return None

    def _is_untouched(self, path: str, mark: tuple[int, int, int] | None) -> bool:
        """Whether a file is the one that was in step."""
        return path in self._seen and self._seen[path].mark == mark

    def _fetch_all(
        self, missing: Mapping[str, Blob], others: list[Places], places: Places
    ) -> dict[str, Known]:
        """Fetches contents, each once, or copies them where another file here has them."""
        here = {
            each.sha256: self.paths.root / path
            for path, each in self._seen.items()
            if each.mark == _mark(self.paths.root / path)
        }
        first: dict[str, str] = {}
        for path, blob in missing.items():
            if blob.sha256 not in here:
                first.setdefault(blob.sha256, path)

        def get(path: str) -> None:
            self.store.get_file(missing[path], self.paths.root / path)

        with ThreadPoolExecutor(AT_ONCE) as pool:
            for _ in pool.map(get, first.values()):
                pass
        for path, blob in missing.items():
            if first.get(blob.sha256) != path:
                source = here.get(blob.sha256) or self.paths.root / first[blob.sha256]
                _copy(source, self.paths.root / path)
        known = {}
        for path, blob in missing.items():
            move_places(self.paths.root / path, others, places)
            mark = _mark(self.paths.root / path) or _NOWHERE
            known[path] = Known(sha256=blob.sha256, mark=mark, size=blob.size)
        return known

    def _remove(self, paths: Iterable[str]) -> None:
        for path in paths:
            remove_file(self.paths.root / path)
            for folder in (self.paths.root / path).parents:
                if folder == self.paths.root or any(folder.iterdir()):
                    break
                with storage_errors(folder):
                    folder.rmdir()

    # Storing -----------------------------------------------------------------------------------------------------

    def snapshot(self) -> dict[str, tuple[int, int, int]]:
        """How every file looks now. Call it where nobody is in the middle of a change."""
        return scan(self.paths.root)

    def upload(
        self, looks: Mapping[str, tuple[int, int, int]], wanted: Callable[[str], bool] = lambda path: True
    ) -> Changes:
        """Stores the contents of all files that are not in step. wanted: what this host fetches at all; what it does not
        have of the rest is no change. Raises OSError for a file that has gone since it was looked at, FoundryError kinds."""
        looks = {path: mark for path, mark in looks.items() if wanted(path)}
        before = {path: known for path, known in self.record.files.items() if wanted(path)}
        changed = [path for path, mark in looks.items() if path not in before or before[path].mark != mark]

        def put(path: str) -> Blob:
            return self.store.put_file(self.paths.root / path)

        with ThreadPoolExecutor(AT_ONCE) as pool:
            blobs = dict(zip(changed, pool.map(put, changed), strict=True))
        return Changes(looks, blobs, frozenset(before.keys() - looks.keys()))

    def settle(self, number: int, changes: Changes) -> None:
        """Notes that the folder, as it was looked at, is in step with a manifest."""
        known = {path: each for path, each in self.record.files.items() if path not in changes.gone}
        for path, mark in changes.looks.items():
            if (blob := changes.put.get(path)) is not None:
                known[path] = Known(sha256=blob.sha256, mark=mark, size=blob.size)
        self._write(number, known)

    def _write(self, number: int, files: dict[str, Known]) -> None:
        self.record = Record(chain=self._chain, number=number, files=files)
        self._seen = files
        write_model(self.paths.stored, self.record)


class Changes:
    """What was done in a folder since it was in step. put: files that are new or other; gone: files that are no more."""

    def __init__(
        self, looks: Mapping[str, tuple[int, int, int]], put: Mapping[str, Blob], gone: frozenset[str]
    ) -> None:
        self.looks, self.put, self.gone = looks, put, gone

    def applied_to(self, files: Mapping[str, Blob]) -> dict[str, Blob]:
        """A manifest's files with these changes."""
        kept = {path: blob for path, blob in files.items() if path not in self.gone}
        return {**kept, **self.put}


def scan(root: Path) -> dict[str, tuple[int, int, int]]:
    """Every file of a run's folder that others need, as size, time and number. Left out are earlier versions, what is only
    for this host (locks, caches that are made again, a note that its GPU failed), what is half written, and links."""
    paths = RunPaths(root, "")
    apart = {paths.versions.name, paths.run_file.name}
    here_only = {paths.lock.name, paths.stored.name, SAMPLE_REQUEST, RECORDING}
    found: dict[str, tuple[int, int, int]] = {}
    for folder, names, files in os.walk(root):
        here = Path(folder)
        inside = here.relative_to(root).as_posix()
        top = inside == "."
        names[:] = sorted(
            name
            for name in names
            if not (top and name in apart) and not (name == CACHE and here.name == paths.training.name)
        )
        for name in sorted(files):
            half = name.startswith(".") and ".part" in name
            if half or name in here_only or (top and name in apart):
                continue
            path = here / name
            if not path.is_symlink() and (mark := _mark(path)) is not None:
                found[name if top else f"{inside}/{name}"] = mark
    return found


def _mark(path: Path) -> tuple[int, int, int] | None:
    try:
        facts = path.stat()
    except OSError:
        return None
    return facts.st_size, facts.st_mtime_ns, facts.st_ino


def _copy(source: Path, target: Path) -> None:
    make_folder(target.parent)
    write_aside(target, lambda aside: shutil.copyfile(source, aside))


def move_places(path: Path, others: Iterable[Places], places: Places) -> None:
    """Makes the paths in a result file lead to this host's folders. The file stays in step: what differs is of no concern
    to another host."""
    if path.suffix != ".json":
        return
    before = text = path.read_bytes()
    for other in others:
        for old, new in ((other.dataset_dir, places.dataset_dir), (other.lora_dir, places.lora_dir)):
            text = text.replace(b'"' + _spelt(old) + b"/", b'"' + _spelt(new) + b"/")
    if text != before:
        write_bytes(path, text)


def _spelt(folder: str) -> bytes:
    return json.dumps(folder, ensure_ascii=False)[1:-1].encode()
