"""The object store itself: small objects under a key, and files under the hash of their content. Everything that can go
wrong between here and there becomes one sentence: what passes is a BackendError, what does not is a StorageError."""

from __future__ import annotations

import hashlib
import os
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from urllib.request import url2pathname

from pydantic import BaseModel, ConfigDict

from lora_foundry.errors import BackendError, FoundryError, InputError, StorageError, brief
from lora_foundry.extras import missing_package
from lora_foundry.files.storage import make_folder, write_aside

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig
    from obstore.store import ObjectStore as Backend

VARIABLE = "LORA_FOUNDRY_STORAGE"
SCHEMES = ("s3", "s3a", "gs", "az", "azure", "abfs", "abfss", "file")
# A file of this size or less is read once, hashed and sent as it was read, so that one which somebody changes meanwhile is
# sent whole. Larger ones are written aside by the stages and never changed; they are streamed.
IN_MEMORY = 32 << 20
PIECE = 8 << 20
REQUEST_PATIENCE = timedelta(seconds=20)  # for one request, tried again within it
_BLOBS = "blobs/"
ENDPOINT = "AWS_ENDPOINT"
_SERVER = re.compile(r"https?://[^/\s]+")
_UNANSWERED = (
    "HTTP error: error sending request"  # what the library says of a server that no connection reaches
)


class Blob(BaseModel):
    """A file's content: SHA-256 in hex, and bytes."""

    model_config = ConfigDict(frozen=True)

    sha256: str
    size: int


class Traffic(BaseModel):
    """What was moved. Files that were there already are not counted."""

    stored_files: int = 0
    stored_bytes: int = 0
    fetched_files: int = 0
    fetched_bytes: int = 0


class ObjectStore:
    """One bucket, from a prefix on. `address` may be shown to people: it holds no credentials, which are read where the
    cloud's own tools read them (`AWS_ACCESS_KEY_ID`, an instance's role, ...)."""

    def __init__(self, address: str, *, patience: timedelta = REQUEST_PATIENCE) -> None:
        self.address = checked_address(address)
        self.traffic = Traffic()
        self._lock = threading.Lock()
        self._store = _open(self.address, patience)

    # Objects -----------------------------------------------------------------------------------------------------

    def create(self, key: str, data: bytes) -> bool:
        """Writes a new object; False, with nothing written, where one of that key is there already. Of many who try at the
        same time one succeeds."""
        from obstore import put
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        try:
            with self._sentences():
                put(self._store, key, data, mode="create", use_multipart=False)
        except (AlreadyExistsError, PreconditionError):
            return False
        return True

    def write(self, key: str, data: bytes) -> None:
        """Writes an object, in place of an earlier one of that key."""
        from obstore import put

        with self._sentences():
            put(self._store, key, data)

    def read(self, key: str) -> bytes | None:
        """An object's bytes; None where there is none."""
        from obstore import get

        with self._sentences(), suppress(FileNotFoundError):
            return bytes(get(self._store, key).bytes())
        return None

    def keys(self, prefix: str) -> dict[str, datetime]:
        """The objects below a prefix that ends with a slash, and when each was written."""
        from obstore import list as listed

        with self._sentences():
            return {
                str(each["path"]): each["last_modified"]
                for part in listed(self._store, prefix.rstrip("/"))
                for each in part
            }

    def remove(self, keys: Sequence[str]) -> None:
        """Deletes objects; absent is fine."""
        from obstore import delete

        with self._sentences():
            for key in keys:
                with suppress(FileNotFoundError):
                    delete(self._store, key)

    # Contents ----------------------------------------------------------------------------------------------------

    def holds(self, sha256: str) -> bool:
        """Whether a content is there."""
        from obstore import head

        with self._sentences(), suppress(FileNotFoundError):
            head(self._store, blob_key(sha256))
            return True
        return False

    def put_file(self, path: Path) -> Blob:
        """Stores a file's content, unless it is there already. Raises OSError for a file that is gone, ChangedError for
        a large one that was changed meanwhile."""
        from obstore import put

        with path.open("rb") as file:
            before = os.fstat(file.fileno())
            small = before.st_size <= IN_MEMORY
            data = file.read() if small else b""
            digest = hashlib.sha256(data) if small else hashlib.file_digest(file, "sha256")
            blob = Blob(sha256=digest.hexdigest(), size=len(data) if small else before.st_size)
            if self.holds(blob.sha256):
                return blob
            file.seek(0)
            if not small and _mark(os.fstat(file.fileno())) != _mark(before):
                raise ChangedError(f"{path} was changed while it was read.")
            with self._sentences():
                put(self._store, blob_key(blob.sha256), data if small else file)
            if not small and _mark(os.fstat(file.fileno())) != _mark(before):
                self.remove([blob_key(blob.sha256)])
                raise ChangedError(f"{path} was changed while it was stored.")
        with self._lock:
            self.traffic.stored_files += 1
            self.traffic.stored_bytes += blob.size
        return blob

    def get_file(self, blob: Blob, path: Path) -> None:
        """Writes a content to `path`, whole or not at all. Raises StorageError for a full disk, and where what is stored
        is not what was."""
        make_folder(path.parent)

        def receive(aside: Path) -> None:
            digest = hashlib.sha256()
            with aside.open("wb") as file:
                for piece in self._pieces(blob_key(blob.sha256), path):
                    digest.update(piece)
                    file.write(piece)
            if digest.hexdigest() != blob.sha256:
                raise StorageError(
                    f"What {self.address} holds of {path.name} is damaged ({blob_key(blob.sha256)}); delete that object "
                    "there and run the stage again that made the file."
                )

        write_aside(path, receive)
        with self._lock:
            self.traffic.fetched_files += 1
            self.traffic.fetched_bytes += blob.size

    def blobs(self) -> dict[str, datetime]:
        """All contents that are there, by their hash."""
        return {key.rpartition("/")[2]: at for key, at in self.keys(_BLOBS).items()}

    def remove_blobs(self, hashes: Sequence[str]) -> None:
        """Deletes contents."""
        self.remove([blob_key(each) for each in hashes])

    def _pieces(self, key: str, path: Path) -> Iterator[bytes]:
        """A content, piece by piece."""
        from obstore import get

        with self._sentences():
            try:
                stream = get(self._store, key).stream(min_chunk_size=PIECE)
            except FileNotFoundError:
                raise StorageError(
                    f"{self.address} no longer holds {path.name} ({key}), which a run needs; run the stage again that "
                    "made the file."
                ) from None
            yield from map(bytes, stream)

    @contextmanager
    def _sentences(self) -> Iterator[None]:
        """Every error of the library in one sentence."""
        from obstore import exceptions

        try:
            yield
        except (FoundryError, exceptions.AlreadyExistsError, exceptions.PreconditionError):
            raise
        except (
            FileNotFoundError
        ) as error:  # of a place to write to; who reads knows that there may be nothing
            raise StorageError(
                f"There is no bucket at {self.address}; make it, or correct {VARIABLE}."
            ) from error
        except (exceptions.BaseError, OSError) as error:
            raise told(self.address, error) from error


class ChangedError(FoundryError):
    """A file was changed while it was stored; the next look takes it as it is then."""

    retryable = True


def checked_address(address: str) -> str:
    """The address without a slash at its end. Raises InputError for one that is no store's."""
    scheme = address.partition("://")[0]
    if "://" not in address or scheme not in SCHEMES or not address.partition("://")[2].strip("/"):
        raise InputError(
            f"{VARIABLE} = {address!r} is no storage; write s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, "
            "az://CONTAINER/PREFIX or file:///FOLDER."
        )
    if "@" in urlsplit(address).netloc:
        raise InputError(
            f"{VARIABLE} must hold no password; give it as the cloud's own tools want it (AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, for example)."
        )
    return address.rstrip("/")


def blob_key(sha256: str) -> str:
    return f"{_BLOBS}{sha256[:2]}/{sha256}"


def _open(address: str, patience: timedelta) -> Backend:
    try:
        from obstore.exceptions import BaseError
        from obstore.store import from_url
    except ImportError as error:
        raise missing_package(f"{VARIABLE} ({address})", error) from error
    retry: RetryConfig = {"max_retries": 4, "retry_timeout": patience}
    try:
        if address.startswith("file:"):
            _check_folder(address)
            return from_url(address)
        # http is for a server on this machine or in this house; a cloud's address has https in it.
        options: ClientConfig = {"allow_http": True, "timeout": "10m", "connect_timeout": "5s"}
        return from_url(address, client_options=options, retry_config=retry)
    except (BaseError, ValueError, OSError) as error:
        raise InputError(f"{VARIABLE} = {address!r} cannot be used: {brief(str(error))[:200]}") from error


def _check_folder(address: str) -> None:
    """Raises InputError where there is no such folder: made by itself, a misspelt one, or a share that is not mounted, would
    be a storage that no other host sees."""
    parts = urlsplit(address)
    if parts.netloc not in {"", "localhost"}:
        raise InputError(
            f"{VARIABLE} = {address!r} has two slashes; a folder's address has three: file:///FOLDER."
        )
    folder = Path(url2pathname(parts.path))
    if not folder.is_dir():
        raise InputError(f"{VARIABLE} = {address!r}: the folder {folder} does not exist; make it first.")


def told(address: str, error: Exception) -> FoundryError:
    """What an error of the library means, and what to do."""
    from obstore.exceptions import PermissionDeniedError, UnauthenticatedError

    text = " ".join(str(error).split("Debug source")[0].split())
    if isinstance(error, PermissionDeniedError | UnauthenticatedError) or "AccessDenied" in text:
        return StorageError(
            f"{address} refuses these credentials; check them (for S3: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or "
            "AWS_PROFILE) and that they may read, list, write and delete there."
        )
    if "NoSuchBucket" in text or "ContainerNotFound" in text:
        return StorageError(f"There is no bucket at {address}; make it, or correct {VARIABLE}.")
    if "credential" in text.lower() or "169.254." in text:
        return StorageError(
            f"No credentials for {address} were found; set them (for S3: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY)."
        )
    if isinstance(error, PermissionError):
        return StorageError(f"{address} cannot be written; change the folder's rights.")
    if (server := _SERVER.search(text)) and _UNANSWERED in text:
        named = any(each.startswith(ENDPOINT) for each in os.environ)  # a person named it, not the cloud
        ask = f"is {ENDPOINT}_URL right, and the server up?" if named else "can this host reach it?"
        return BackendError(f"{server[0]} does not answer; {ask} ({brief(text)[:120]}…)")
    return BackendError(f"The storage {address} does not answer as it should: {brief(text)[:240]}")


def _mark(facts: os.stat_result) -> tuple[int, int]:
    return facts.st_size, facts.st_mtime_ns


def utc_now() -> datetime:
    return datetime.now(UTC)
