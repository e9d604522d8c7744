"""Which files a run's folder holds, as the storage has it: a chain of manifests for each version of a character, numbered,
each whole and written last. The next number can be written once, by whoever read the one before; that makes every change of
a folder one atomic step, on every store that can refuse to replace an object, and keeps out an attempt whose time is over."""

from __future__ import annotations

import socket
from datetime import datetime
from typing import Any
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lora_foundry.errors import StorageError
from lora_foundry.remote.objects import Blob, ObjectStore, utc_now

GIVEN = "given"  # the chain of what people brought, before it is known which version will use it
_RUNS = "runs"
_KEPT = 3  # manifests of a chain that stay, for readers that have just found them


class Fence(BaseModel):
    """Which attempt writes. at: when it took its row, by the database's clock, so that of two attempts all hosts agree
    which is the later; lease: its name."""

    model_config = ConfigDict(frozen=True)

    at: datetime
    lease: str


class Places(BaseModel):
    """Where a host had the folder and the LoRAs: paths in result files begin with these."""

    model_config = ConfigDict(frozen=True)

    dataset_dir: str
    lora_dir: str


class Manifest(BaseModel):
    """One state of a folder.

    files: by their path below the folder, with slashes. lora: what was installed, by file name. run: the run without its
    folders. places: the folders of every host that has written. given: up to which manifest of what people brought is in
    it. deleted: a person deleted all of it.
    """

    model_config = ConfigDict(frozen=True)

    number: int = 0
    files: dict[str, Blob] = {}
    lora: dict[str, Blob] = {}
    run: dict[str, Any] | None = None
    places: tuple[Places, ...] = ()
    fence: Fence | None = None
    given: int = 0
    deleted: bool = False
    host: str = Field(default_factory=socket.gethostname)
    at: datetime = Field(default_factory=utc_now)


class Chain:
    """The manifests of one version of a character's folder. folder: its name below the datasets' folder."""

    def __init__(self, store: ObjectStore, folder: str, name: str) -> None:
        self._store = store
        self.prefix = f"{_RUNS}/{_plain(folder)}/{name}/"

    def newest(self) -> Manifest | None:
        """The last that was written; None where there is none. Raises StorageError for one that cannot be read."""
        while True:
            keys = self._store.keys(self.prefix)
            if not keys:
                return None
            key = max(keys)
            data = self._store.read(key)
            if data is None:
                continue  # several were written since it was listed, and it was cleared away
            try:
                return Manifest.model_validate_json(data)
            except ValidationError as error:
                raise StorageError(
                    f"{key} in {self._store.address} is no manifest that this version can read; install the newest "
                    "version on every host."
                ) from error

    def append(self, manifest: Manifest) -> bool:
        """Writes the manifest of its number; False where another host has written that number."""
        data = manifest.model_dump_json(indent=1).encode()
        if not self._store.create(self._key(manifest.number), data):
            return False
        old = manifest.number - _KEPT
        if old > 0:
            self._store.remove([self._key(old)])
        return True

    def _key(self, number: int) -> str:
        return f"{self.prefix}{number:08d}.json"


def version_chain(store: ObjectStore, folder: str, version: int) -> Chain:
    return Chain(store, folder, f"{version:05d}")


def versions(store: ObjectStore, folder: str) -> list[int]:
    """The versions of a character that the storage knows, the newest first."""
    prefix = f"{_RUNS}/{_plain(folder)}/"
    names = {key.removeprefix(prefix).partition("/")[0] for key in store.keys(prefix)}
    return sorted((int(name) for name in names if name.isdigit()), reverse=True)


def all_kept(store: ObjectStore) -> dict[str, Manifest]:
    """Every manifest that is there, by its key: what they name is in use. Raises ValidationError for what is none."""
    found = {key: store.read(key) for key in store.keys(f"{_RUNS}/")}
    return {key: Manifest.model_validate_json(data) for key, data in found.items() if data is not None}


def _plain(folder: str) -> str:
    """A folder's name as a part of a key: letters of every script are escaped, so that no store and no proxy spells it
    otherwise."""
    return quote(folder, safe="").replace("%", "~")
