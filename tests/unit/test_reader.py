"""One reader: whatever kind of file a picture is, everybody sees it as people do; and nobody else decodes pictures."""

from __future__ import annotations

import ast
import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageDraw

import lora_foundry
from lora_foundry.errors import InputError
from lora_foundry.files.images import picture_size, read_alpha, read_brightness, read_picture

SOURCE = Path(lora_foundry.__file__).parent


def test_pictures_are_opened_in_one_place() -> None:
    openers = {
        path.relative_to(SOURCE).as_posix()
        for path in SOURCE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute)
        and node.attr == "open"
        and isinstance(node.value, ast.Name)
        and node.value.id in {"Image", "PILImage"}
    }
    assert openers == {"files/images.py"}, "use files.images.read_picture"


def steps(bits: int) -> np.ndarray:
    """Five even steps from black to white, over the whole range of a type."""
    return np.repeat(np.linspace(0, 2**bits - 1, 5).round(), 16)[None].repeat(16, 0)


@pytest.mark.parametrize("kind", ["I;16", "I;16B", "I", "F", "F one", "L", "1"])
def test_grey_of_every_depth_has_its_full_range(tmp_path: Path, kind: str) -> None:
    wanted = [0, 64, 128, 191, 255]
    if kind == "I;16":
        image, name = Image.fromarray(steps(16).astype(np.uint16)), "a.png"
    elif kind == "I;16B":
        image, name = Image.fromarray(steps(16).astype(">u2")), "a.tif"
    elif kind == "I":
        image, name = Image.fromarray(steps(16).astype(np.int32)), "a.tif"
    elif kind == "F":
        image, name = Image.fromarray(steps(8).astype(np.float32)), "a.tif"
    elif kind == "F one":
        image, name = Image.fromarray((steps(8) / 255).astype(np.float32)), "a.tif"
    else:
        image, name = Image.fromarray(steps(8).astype(np.uint8)), "a.png"
    if kind == "1":
        image, wanted = image.point(lambda level: 255 * (level > 127)).convert("1"), [0, 0, 255, 255, 255]
    image.save(tmp_path / name)
    seen = read_picture(tmp_path / name)
    assert seen.mode == "RGB"
    found = [seen.getpixel((8 + 16 * at, 8))[0] for at in range(5)]  # type: ignore[index]
    assert all(abs(one - other) <= 1 for one, other in zip(found, wanted, strict=True)), found


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB", "L"])
def test_what_is_transparent_is_white_in_a_picture_and_black_in_a_mask(tmp_path: Path, mode: str) -> None:
    cut = Image.new("RGBA", (40, 40), (0, 0, 0, 0))
    ImageDraw.Draw(cut).rectangle((0, 0, 19, 39), fill=(0, 0, 0, 255))
    path = tmp_path / "cut.png"
    if mode in {"RGB", "L"}:  # a colour that counts as transparent
        plain = Image.new(mode, (40, 40), 7 if mode == "L" else (7, 7, 7))
        ImageDraw.Draw(plain).rectangle((0, 0, 19, 39), fill=0)
        plain.save(path, transparency=7 if mode == "L" else (7, 7, 7))
    elif mode == "P":
        cut.convert("RGBA").quantize(4).save(path)
    else:
        cut.convert(mode).save(path)
    seen = read_picture(path)
    assert (seen.getpixel((5, 20)), seen.getpixel((35, 20))) == ((0, 0, 0), (255, 255, 255))
    assert read_brightness(path).getpixel((35, 20)) == 0
    assert (read_alpha(path).getpixel((5, 20)), read_alpha(path).getpixel((35, 20))) == (255, 0)


def test_a_picture_without_transparency_counts_as_a_whole(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    assert read_alpha(tmp_path / "a.png").getextrema() == (255, 255)


@pytest.mark.parametrize("turn", range(1, 9))
def test_every_orientation_is_shown_upright(tmp_path: Path, turn: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = turn
    Image.new("RGB", (40, 20), "red").save(tmp_path / "a.jpg", exif=exif)
    size = (20, 40) if turn >= 5 else (40, 20)
    assert picture_size(tmp_path / "a.jpg") == size
    assert read_picture(tmp_path / "a.jpg").size == size


def test_damaged_exif_spoils_no_picture(tmp_path: Path) -> None:
    Image.new("RGB", (40, 20), "red").save(tmp_path / "a.jpg", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff")
    assert read_picture(tmp_path / "a.jpg").size == (40, 20)


def test_printing_colours_are_seen_as_colours(tmp_path: Path) -> None:
    Image.new("RGB", (20, 20), (250, 250, 250)).convert("CMYK").save(tmp_path / "a.jpg", quality=95)
    seen = read_picture(tmp_path / "a.jpg").getpixel((10, 10))
    assert min(seen) > 240  # type: ignore[type-var]
    Image.new("LAB", (20, 20), (255, 128, 128)).save(tmp_path / "a.tif")
    assert min(read_picture(tmp_path / "a.tif").getpixel((3, 3))) > 240  # type: ignore[type-var]


def test_a_profile_is_brought_to_srgb_and_a_broken_one_is_passed_over(tmp_path: Path) -> None:
    swapped = ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ"))
    grey = Image.new("RGB", (8, 8), (200, 100, 50))
    grey.save(tmp_path / "broken.png", icc_profile=b"no profile at all")
    assert read_picture(tmp_path / "broken.png").getpixel((3, 3)) == (200, 100, 50)
    grey.save(tmp_path / "foreign.png", icc_profile=swapped.tobytes())
    assert read_picture(tmp_path / "foreign.png").getpixel((3, 3)) == (200, 100, 50)
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    grey.save(tmp_path / "srgb.png", icc_profile=srgb)
    assert read_picture(tmp_path / "srgb.png").getpixel((3, 3)) == (200, 100, 50)
    wide = wide_profile(srgb)
    grey.save(tmp_path / "wide.png", icc_profile=wide)
    assert read_picture(tmp_path / "wide.png").getpixel((3, 3)) != (200, 100, 50)


def wide_profile(srgb: bytes) -> bytes:
    """The sRGB profile under another name, with red and green of a larger gamut (Display P3's, D50-adapted)."""
    data = bytearray(srgb)
    (count,) = struct.unpack(">I", data[128:132])
    for at in range(132, 132 + 12 * count, 12):
        tag, place, size = struct.unpack(">4sII", data[at : at + 12])
        if tag == b"desc":
            data[place : place + size] = bytes(data[place : place + size]).replace(
                b"s\0R\0G\0B", b"p\0r\0o\0F"
            )
            data[place : place + size] = bytes(data[place : place + size]).replace(b"sRGB", b"proF")
        numbers = {b"rXYZ": (0.5151, 0.2412, -0.0011), b"gXYZ": (0.2920, 0.6922, 0.0419)}.get(tag)
        if numbers:
            data[place + 8 : place + 20] = struct.pack(">3i", *(round(each * 65536) for each in numbers))
    return bytes(data)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_frame_of_an_animation_is_the_picture(tmp_path: Path, kind: str) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    path = tmp_path / f"a.{kind.lower()}"
    frames[0].save(
        path, kind, save_all=True, append_images=frames[1:], **({"lossless": True} if kind == "WEBP" else {})
    )
    assert read_picture(path).getpixel((3, 3)) == (255, 0, 0) or kind == "GIF"
    assert read_picture(path).getpixel((3, 3))[0] > 240  # type: ignore[index]


def test_a_bomb_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    for width in (13_000, 60_000):
        header = struct.pack(">IIBBBBB", width, width, 8, 2, 0, 0, 0)
        data = (
            b"\x89PNG\r\n\x1a\n"
            + chunk(b"IHDR", header)
            + chunk(b"IDAT", zlib.compress(b"\0" * 9))
            + chunk(b"IEND", b"")
        )
        (tmp_path / "bomb.png").write_bytes(data)
        with pytest.raises(InputError, match=r"pixels.*make it smaller"):
            read_picture(tmp_path / "bomb.png")


def test_files_that_start_other_programs_are_no_pictures(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n")
    with pytest.raises(InputError, match="not a picture that can be read"):
        read_picture(tmp_path / "a.png")


def test_a_network_sends_common_kinds_only() -> None:
    data = io.BytesIO()
    Image.new("RGB", (40, 40)).save(data, "TGA")
    with pytest.raises(InputError):
        read_picture(data.getvalue(), formats=("PNG",))
    assert read_picture(data.getvalue()).size == (40, 40)


def test_large_photographs_are_read_small_where_that_is_enough(tmp_path: Path) -> None:
    Image.new("RGB", (2000, 1500), "green").save(tmp_path / "a.jpg")
    small = read_picture(tmp_path / "a.jpg", within=200)
    assert 200 <= max(small.size) < 2000
