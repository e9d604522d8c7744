"""Captions as people and other programs leave them beside pictures: found whatever they are called, read whatever
program wrote them. Nothing here writes."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from charset_normalizer import from_bytes

from lora_foundry.domain.captions import one_line
from lora_foundry.errors import InputError

CAPTION_SUFFIXES = (".txt", ".caption", ".tags")
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark is the start of this one
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
MOST_BYTES = 100_000


class FolderNames:
    """The names in a folder by their stems, so that what belongs to a picture is found at once among thousands."""

    def __init__(self, names: Iterable[str]) -> None:
        self._by_stem: dict[str, list[str]] = {}
        for name in names:
            self.add(name)

    def add(self, name: str) -> None:
        """Takes in a name that the folder has now."""
        same = self._by_stem.setdefault(Path(name).stem, [])
        if name not in same:
            same.append(name)

    def of(self, stem: str) -> Sequence[str]:
        """The names with this stem."""
        return self._by_stem.get(stem, ())

    def __iter__(self) -> Iterator[str]:
        return (name for names in self._by_stem.values() for name in names)


def captions_beside(picture: str, files: FolderNames) -> list[str]:
    """Those of the files in a picture's folder that hold its caption, the one that counts first: `x.png.txt` before
    `x.txt`, and .txt before .caption before .tags, in any case of letters."""
    found = []
    for order, stem in enumerate((picture, Path(picture).stem)):
        for file in files.of(stem):
            suffix = Path(file).suffix.lower()
            if suffix in CAPTION_SUFFIXES and file != picture:
                found.append((order, CAPTION_SUFFIXES.index(suffix), file))
    return [file for _, _, file in sorted(found)]


def new_caption(picture: Path, shared: bool) -> Path:
    """Where a picture without a caption gets its own: `x.txt`, or `x.png.txt` where another picture of the folder
    `shared` its stem and would be given the same file."""
    return picture.with_name(f"{picture.name}.txt") if shared else picture.with_suffix(".txt")


def read_caption(path: Path) -> str:
    """A caption file's text on one line, tags parted by commas. Empty where it holds no word.

    Raises InputError where it cannot be read or its encoding cannot be told.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"The caption {path} cannot be read ({error.strerror or error}).") from error
    if len(data) > MOST_BYTES:
        raise InputError(f"The caption {path} has {len(data):,} bytes, which is no caption; replace it.")
    text = decode(data)
    if text is None:
        raise InputError(f"The caption {path} is in an encoding that cannot be told; save it as UTF-8.")
    return one_line(text)


def decode(data: bytes) -> str | None:
    """Text in the encoding that its bytes tell: by its mark, as UTF-8, as UTF-16 without a mark, or by the statistics
    of the older encodings. None where nothing fits."""
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            return _decoded(data, encoding)
    if b"\0" not in data:
        if (text := _decoded(data, "utf-8")) is not None:
            return text
        guess = from_bytes(data).best()
        return None if guess is None else str(guess)
    # Latin text in UTF-16 has a zero in every other byte.
    encoding = "utf-16-be" if data[:1] == b"\0" else "utf-16-le"
    text = _decoded(data, encoding)
    return text if text is not None and "\0" not in text else None


def _decoded(data: bytes, encoding: str) -> str | None:
    try:
        return data.decode(encoding)
    except UnicodeDecodeError:
        return None
