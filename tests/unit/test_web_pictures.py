"""Pictures that come from outside, and small ones that go out."""

from __future__ import annotations

import asyncio
import contextlib
import io
import struct
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from lora_foundry.errors import InputError
from lora_foundry.web import references, thumbnails
from lora_foundry.web.problems import NotFoundError
from lora_foundry.web.thumbnails import Thumbnails, shrink


def encoded(kind: str, size: tuple[int, int] = (64, 48), mode: str = "RGB", **options: object) -> bytes:
    out = io.BytesIO()
    Image.new(mode, size, 200 if mode == "L" else "red").save(out, kind, **options)
    return out.getvalue()


def png_of_size(width: int, height: int) -> bytes:
    """A PNG whose header promises far more than it holds."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "AVIF", "GIF", "BMP", "TIFF"])
def test_a_picture_is_written_anew_under_the_hash_of_its_content(tmp_path: Path, kind: str) -> None:
    kept = references.keep(tmp_path, encoded(kind))
    again = references.keep(tmp_path, encoded(kind))
    assert kept == again
    with Image.open(tmp_path / kept.name) as picture:
        assert (picture.format, picture.mode, picture.size) == ("PNG", "RGB", (64, 48))


def test_nothing_but_the_picture_is_kept(tmp_path: Path) -> None:
    notes = PngImagePlugin.PngInfo()
    notes.add_text("comment", "<script>alert(1)</script>")
    data = encoded("PNG", pnginfo=notes) + b"<script>alert(2)</script>"
    exif = Image.Exif()
    exif[0x010E] = "where I live"
    for each in (data, encoded("JPEG", exif=exif)):
        kept = (tmp_path / references.keep(tmp_path, each).name).read_bytes()
        assert b"script" not in kept
        assert b"where I live" not in kept


def test_a_turned_photograph_stands_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    kept = references.keep(tmp_path, encoded("JPEG", exif=exif))
    assert (kept.width, kept.height) == (48, 64)


def test_what_shines_through_becomes_white() -> None:
    out = io.BytesIO()
    Image.new("RGBA", (64, 64), (255, 0, 0, 0)).save(out, "PNG")
    assert references.decode(out.getvalue()).getpixel((3, 3)) == (255, 255, 255)


def test_a_large_picture_is_made_smaller(tmp_path: Path) -> None:
    kept = references.keep(tmp_path, encoded("JPEG", (4000, 1000), "L"))
    assert (kept.width, kept.height) == (2048, 512)


@pytest.mark.parametrize("data", [
    b"", b"no picture", b"<svg onload='alert(1)'/>", encoded("PNG")[:-40],
    encoded("PNG", (16, 400)), b"\x89PNG\r\n\x1a\n" + b"\0" * 100,
], ids=["empty", "text", "svg", "cut", "narrow", "broken header"])  # fmt: skip
def test_what_is_no_usable_picture_is_refused(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(InputError):
        references.keep(tmp_path, data)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("width", "height"), [(60_000, 60_000), (20_000, 2001), (2**31 - 1, 2**31 - 1)])
def test_a_picture_that_would_fill_the_memory_is_refused_before_it_is_decoded(
    width: int, height: int
) -> None:
    with pytest.raises(InputError, match=r"pixels|picture"):
        references.decode(png_of_size(width, height))


@examples(deadline=None, max_examples=60)
@given(place=st.integers(0, 400), change=st.binary(min_size=1, max_size=30))
def test_a_damaged_picture_is_a_picture_or_an_input_error(place: int, change: bytes) -> None:
    data = bytearray(encoded("PNG"))
    data[place : place + len(change)] = change
    with contextlib.suppress(InputError):
        references.decode(bytes(data))


def test_a_thumbnail_is_made_once_and_anew_when_the_picture_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []

    def counted(path: Path, edge: int) -> bytes:
        made.append(edge)
        return shrink(path, edge)

    monkeypatch.setattr(thumbnails, "shrink", counted)
    path = tmp_path / "a.png"
    path.write_bytes(encoded("PNG", (600, 300)))

    async def scenario() -> None:
        kept = Thumbnails()
        first = await kept.of(path, 200)
        assert await kept.of(path, 256) == first
        with Image.open(io.BytesIO(first.data)) as picture:
            assert (picture.format, picture.size) == ("WEBP", (256, 128))
        path.write_bytes(encoded("PNG", (300, 600)))
        second = await kept.of(path, 200)
        assert second.tag != first.tag

    asyncio.run(scenario())
    assert made == [256, 256]


def test_thumbnails_take_a_bounded_amount_of_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(thumbnails, "MOST_BYTES", 3000)
    monkeypatch.setattr(thumbnails, "shrink", lambda path, edge: b"x" * 1000)

    async def scenario() -> int:
        kept = Thumbnails()
        for number in range(9):
            path = tmp_path / f"{number}.png"
            path.write_bytes(b"x")
            await kept.of(path, 128)
        return kept._bytes

    assert asyncio.run(scenario()) == 3000


def test_a_file_that_is_no_picture_has_no_thumbnail(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"<html>")
    with pytest.raises(NotFoundError):
        shrink(path, 128)
    path.write_bytes(png_of_size(60_000, 60_000))
    with pytest.raises(NotFoundError):
        shrink(path, 128)
