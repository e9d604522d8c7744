"""Brings model files to this machine: from the Hugging Face hub (one file, or a whole diffusers folder), from an address,
or from a place on this machine. What was broken off goes on; a whole file is proven by its size and SHA-256 where the
sender tells them, and only then gets its name."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol
from urllib.parse import urlsplit

from lora_foundry.errors import BackendError, FoundryError, InputError, StorageError
from lora_foundry.files.hashing import file_hash
from lora_foundry.files.storage import SPARE, disk_space

SHA256_DIGITS = 64  # hexadecimal; the hub's other etags are git hashes
_log = logging.getLogger(__name__)

# All that a diffusers folder needs, and no pickles.
FOLDER_PATTERNS = ["*.json", "*.txt", "*.model", "**/*.json", "**/*.txt", "**/*.model", "**/*.safetensors"]


class Source(NamedTuple):
    """Where a file (or a diffusers folder) can be had. `name` is what it is called here; `repository` and `path` are the
    hub's, an empty path being the whole folder; `url` is any other address. One with neither is brought by hand."""

    name: str
    licence: str = ""
    repository: str = ""
    path: str = ""
    url: str = ""

    @property
    def place(self) -> str:
        """Where it comes from, for people."""
        return self.url or "/".join(part for part in (self.repository, self.path) if part)


class Extent(NamedTuple):
    """How large a source is, in bytes, and its SHA-256 where the sender tells them."""

    size: int | None
    sha256: str = ""


class Progress(Protocol):
    """Told the bytes that have arrived, of how many if that is known."""

    def __call__(self, done: int, total: int | None) -> None: ...


def parse_source(text: str, name: str, licence: str = "") -> Source:
    """A source from a recipe's or a person's words: `hf:owner/name`, `hf:owner/name/file.safetensors` or https://...

    Raises InputError for anything else.
    """
    if text.startswith("hf:"):
        parts = text.removeprefix("hf:").strip("/").split("/")
        if len(parts) >= 2 and all(parts) and ".." not in parts:
            return Source(name, licence, repository="/".join(parts[:2]), path="/".join(parts[2:]))
    elif urlsplit(text).scheme in ("http", "https") and urlsplit(text).hostname:
        return Source(name, licence, url=text)
    raise InputError(
        f"{text[:200]!r} is no place to fetch a model from; write hf:owner/name, hf:owner/name/file.safetensors or "
        "https://..."
    )


def extent_of(source: Source) -> Extent:
    """What the sender says of a source. Raises BackendError where it cannot be asked."""
    with _fetch_errors(source):
        if source.url:
            return _url_extent(source.url)
        from huggingface_hub import HfApi, get_hf_file_metadata, hf_hub_url

        endpoint = os.environ.get("HF_ENDPOINT") or None
        if source.path:
            known = get_hf_file_metadata(hf_hub_url(source.repository, source.path, endpoint=endpoint))
            digest = known.etag if known.etag and len(known.etag) == SHA256_DIGITS else ""
            return Extent(known.size, digest)
        tree = HfApi(endpoint=endpoint).list_repo_tree(source.repository, recursive=True)
        sizes = [int(getattr(entry, "size", 0) or 0) for entry in tree if _wanted(entry.path)]
        return Extent(sum(sizes))


def fetch(
    source: Source, target: Path, extent: Extent, progress: Progress = lambda done, total: None
) -> Path:
    """Brings a source to `target` (a file, or a folder where the source is one) and returns it.

    Raises StorageError where the disk has no room, BackendError for what may pass (going on where it broke off when it is
    called again), InputError for what the sender refuses.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    _check_room(target, extent)
    aside = target.parent / ".downloads" / hashlib.sha256(source.place.encode()).hexdigest()[:16]
    aside.mkdir(parents=True, exist_ok=True)
    with _fetch_errors(source):
        got = (_fetch_url if source.url else _fetch_hub)(source, aside, extent, progress)
    if extent.sha256 and got.is_file() and (found := file_hash(got)) != extent.sha256:
        shutil.rmtree(aside, ignore_errors=True)
        raise _damaged(source, found, extent)
    _move_in(got, target)
    shutil.rmtree(aside, ignore_errors=True)
    return target


def fetch_cached(source: Source, extent: Extent, progress: Progress = lambda done, total: None) -> Path:
    """Brings a file of the hub into the hub's own cache. Raises as `fetch` does."""
    from huggingface_hub import constants, hf_hub_download

    cache = Path(constants.HF_HUB_CACHE)
    cache.mkdir(parents=True, exist_ok=True)
    _check_room(cache / source.name, extent)
    endpoint = os.environ.get("HF_ENDPOINT") or None
    with _fetch_errors(source):
        bar = _bar(progress, extent.size)
        path = Path(hf_hub_download(source.repository, source.path, endpoint=endpoint, tqdm_class=bar))
    if extent.sha256 and (found := file_hash(path)) != extent.sha256:
        path.resolve().unlink(missing_ok=True)
        raise _damaged(source, found, extent)
    return path


def cached(source: Source) -> Path | None:
    """Where a file of the hub lies in the hub's cache on this machine, without asking any server."""
    from huggingface_hub import try_to_load_from_cache

    if not source.repository or not source.path:
        return None
    found = try_to_load_from_cache(source.repository, source.path)
    return Path(found) if isinstance(found, str) else None


def bring(file: Path, target: Path) -> Path:
    """A file or folder that lies on this machine, under the name by which it is looked for: linked where the disk is the
    same, else copied; the original stays as it is. Raises InputError where there is none, StorageError."""
    if not file.exists():
        raise InputError(f"There is no file or folder {file}.")
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.parent / f".{target.name}.part"
    try:
        if file.is_dir():
            shutil.copytree(file, aside, copy_function=_link_or_copy, dirs_exist_ok=True)
        else:
            aside.unlink(missing_ok=True)
            _link_or_copy(str(file.resolve()), str(aside))
        aside.rename(target)
    except OSError as error:
        raise StorageError(f"{file} cannot be brought to {target}: {error.strerror or error}.") from error
    return target


def _link_or_copy(source: str, target: str) -> str:
    try:
        os.link(source, target)
    except OSError:  # another disk, or one without links
        shutil.copy2(source, target)
    return target


def _damaged(source: Source, found: str, extent: Extent) -> BackendError:
    return BackendError(
        f"{source.name} arrived damaged (SHA-256 {found[:12]}..., not {extent.sha256[:12]}...); run it again."
    )


def _wanted(path: str) -> bool:
    return Path(path).suffix in {".json", ".txt", ".model", ".safetensors"}


def _check_room(target: Path, extent: Extent) -> None:
    free = disk_space(target.parent).free
    if extent.size is not None and free < extent.size + SPARE:
        raise StorageError(
            f"{target.name} takes {extent.size / 1e9:.1f} GB and {target.parent} has {free / 1e9:.1f} GB free; "
            "free some disk space, or set LORA_FOUNDRY_MODELS to a folder on another disk."
        )


def _fetch_hub(source: Source, aside: Path, extent: Extent, progress: Progress) -> Path:
    from huggingface_hub import hf_hub_download, snapshot_download

    endpoint = os.environ.get("HF_ENDPOINT") or None
    bar = _bar(progress, extent.size)
    if source.path:
        return Path(
            hf_hub_download(
                source.repository, source.path, local_dir=aside, endpoint=endpoint, tqdm_class=bar
            )
        )
    return Path(
        snapshot_download(
            source.repository,
            local_dir=aside / source.name,
            allow_patterns=FOLDER_PATTERNS,
            endpoint=endpoint,
            tqdm_class=bar,
            max_workers=2,
        )
    )


def _bar(progress: Progress, total: int | None) -> Any:
    """The hub's client reports by drawing bars; this one draws nothing and reports their sum to `progress`."""
    from huggingface_hub.utils.tqdm import tqdm

    done = 0

    class Bar(tqdm):
        def update(self, n: float | None = 1) -> bool | None:
            nonlocal done
            if n and getattr(self, "unit", "B") == "B":  # another bar of theirs counts files
                done += int(n)
                progress(done, total)
            return None

        def display(self, *args: Any, **options: Any) -> None:
            """Draws nothing."""

    return Bar


def _url_extent(url: str) -> Extent:
    import httpx

    answer = httpx.head(url, follow_redirects=True, timeout=20.0)
    answer.raise_for_status()
    length = answer.headers.get("content-length")
    return Extent(int(length) if length else None)


def _fetch_url(source: Source, aside: Path, extent: Extent, progress: Progress) -> Path:
    """An address's file; what was broken off goes on from there if the sender still has the same file."""
    import httpx

    url = source.url
    part, mark = aside / "file.part", aside / "etag"
    have = part.stat().st_size if part.exists() else 0
    if have and have == extent.size:
        return part
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    if have and mark.exists():
        headers["If-Range"] = mark.read_text(encoding="utf-8")
    with httpx.stream("GET", url, headers=headers, follow_redirects=True, timeout=60.0) as answer:
        answer.raise_for_status()
        goes_on = have > 0 and answer.status_code == httpx.codes.PARTIAL_CONTENT
        mark.write_text(answer.headers.get("etag", ""), encoding="utf-8")
        done = have if goes_on else 0
        with part.open("ab" if goes_on else "wb") as file:
            for piece in answer.iter_bytes():  # as they come: what waited for a full buffer would be lost
                file.write(piece)
                done += len(piece)
                progress(done, extent.size)
    if extent.size is not None and part.stat().st_size != extent.size:
        raise BackendError(
            f"Only {part.stat().st_size} of {extent.size} bytes came from {urlsplit(url).hostname}; run it again to go on."
        )
    return part


def _move_in(got: Path, target: Path) -> None:
    try:
        if got.is_dir():
            shutil.rmtree(got / ".cache", ignore_errors=True)  # the hub client's own notes
        got.replace(target)
    except OSError as error:
        raise StorageError(f"{target} cannot be written: {error.strerror or error}.") from error


@contextmanager
def _fetch_errors(source: Source) -> Iterator[None]:
    """The clients' many errors as ours, each with what to do next."""
    import httpx
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    try:
        yield
    except GatedRepoError as error:
        raise InputError(
            f"{source.repository} wants its licence accepted first: sign in at its page on the Hugging Face hub, accept "
            "it, and set HF_TOKEN to a token of your account."
        ) from error
    except OfflineModeIsEnabled as error:
        raise InputError(
            f"{source.name} is not here, and HF_HUB_OFFLINE forbids to fetch it; unset that, or bring the file by hand."
        ) from error
    except (LocalEntryNotFoundError, httpx.TransportError, TimeoutError) as error:
        raise BackendError(
            f"{source.place} cannot be reached ({type(error).__name__}); look at the network and run it again."
        ) from error
    except (RepositoryNotFoundError, EntryNotFoundError) as error:
        raise InputError(f"There is no {source.place} on the hub; give another place with --base.") from error
    except (HfHubHTTPError, httpx.HTTPStatusError) as error:
        raise BackendError(f"{source.place} was refused: {' '.join(str(error).split())[:200]}") from error
    except (FoundryError, KeyboardInterrupt):
        raise
    except OSError as error:
        raise StorageError(f"{source.name} cannot be written: {error.strerror or error}.") from error
    except (
        Exception
    ) as error:  # the hub's client has an HTTP library of its own, whose errors are no httpx errors
        raise BackendError(
            f"{source.place} cannot be reached ({type(error).__name__}); look at the network and run it again."
        ) from error
