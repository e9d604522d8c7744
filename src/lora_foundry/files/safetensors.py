"""What a safetensors file says about itself in its header: read without loading anything, and refused in one sentence
where the file is a pickle, a GGUF file, cut off or damaged. A file can be written anew under other free text."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from lora_foundry.errors import BaseModelError
from lora_foundry.files.storage import write_aside

PICKLES = (".ckpt", ".pt", ".pth", ".bin", ".pkl")
_PICKLE_MAGIC = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
_GGUF_MAGIC = b"GGUF"
_LARGEST_HEADER = 100_000_000


class Header(NamedTuple):
    """The shape of each tensor of a safetensors file, its free text, and each tensor's type (F16, F8_E4M3, ...).

    places: where each tensor's bytes lie, counted from `start`, which is the header's end. end: how many bytes the file
    has by its own account.
    """

    shapes: dict[str, tuple[int, ...]]
    metadata: dict[str, str]
    types: dict[str, str]
    places: Mapping[str, tuple[int, int]] = MappingProxyType({})
    start: int = 0
    end: int = 0


def read_header(path: Path) -> Header:
    """The header of a safetensors file, which must be whole. Raises BaseModelError for a pickle or a damaged
    file."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        if start.startswith(_PICKLE_MAGIC):
            raise pickle_error(path)
        if start.startswith(_GGUF_MAGIC):
            raise gguf_error(path)
        length = int.from_bytes(start, "little")
        if size < 8 or length > min(size - 8, _LARGEST_HEADER):
            raise _damaged(path, size)
        raw = file.read(length)
    try:
        entries: dict[str, Any] = json.loads(raw)
        metadata = {str(key): str(value) for key, value in (entries.pop("__metadata__", None) or {}).items()}
        shapes = {key: tuple(entry["shape"]) for key, entry in entries.items()}
        types = {key: str(entry["dtype"]) for key, entry in entries.items()}
        places = {key: _place(entry) for key, entry in entries.items()}
        end = max((place[1] for place in places.values()), default=0)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise _damaged(path, size) from error
    if 8 + length + end > size:
        raise BaseModelError(
            f"{path} is truncated: it has {size:,} of {8 + length + end:,} bytes; download or copy it again."
        )
    return Header(shapes, metadata, types, places, 8 + length, 8 + length + end)


def _place(entry: Mapping[str, Any]) -> tuple[int, int]:
    begin, end = entry["data_offsets"]
    return int(begin), int(end)


def rewrite_metadata(source: Path, target: Path, metadata: Mapping[str, str]) -> None:
    """Copies a file with other free text; names, shapes and bytes of the tensors stay as they are. Raises
    BaseModelError, OSError, StorageError."""
    header = read_header(source)
    content: dict[str, Any] = {
        name: {"dtype": header.types[name], "shape": list(shape), "data_offsets": list(header.places[name])}
        for name, shape in header.shapes.items()
    }
    content["__metadata__"] = dict(sorted(metadata.items()))
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)

    def write(aside: Path) -> None:
        with source.open("rb") as old, aside.open("wb") as new:
            new.write(struct.pack("<Q", len(text)) + text)
            old.seek(header.start)
            shutil.copyfileobj(old, new, 1 << 20)

    write_aside(target, write)


def pickle_error(path: Path) -> BaseModelError:
    """Refuses a pickle."""
    return BaseModelError(
        f"{path} is a pickle, which can run any code when it is loaded, and is refused; "
        "get the .safetensors version."
    )


def gguf_error(path: Path) -> BaseModelError:
    """Refuses a GGUF file."""
    return BaseModelError(
        f"{path} is a GGUF file, whose weights are quantised for drawing and cannot be trained on; get the model's "
        ".safetensors version, and let train.memory fit it to your card."
    )


def _damaged(path: Path, size: int) -> BaseModelError:
    return BaseModelError(
        f"{path} is not a whole safetensors file ({size:,} bytes); download or copy it again."
    )
