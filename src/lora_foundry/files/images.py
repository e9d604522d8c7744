"""The one place where pictures are decoded, whoever brought them and whoever wants them: everybody sees the same
picture, upright, in 8-bit sRGB, what is transparent on white. It also writes our own PNG files, which carry how they
were made, so that a picture is known for what it is after a crash, a move or a download."""

from __future__ import annotations

import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageCms, ImageOps, PngImagePlugin
from pydantic import ValidationError

from lora_foundry.domain.dataset import PictureRecord
from lora_foundry.errors import InputError
from lora_foundry.extras import install_command
from lora_foundry.files.hashing import file_hash
from lora_foundry.files.storage import write_aside

MOST_PIXELS = 150_000_000
"""More than any camera makes; a file that promises more is refused before anything of it is decoded."""
RECORD_KEY = "lora_foundry"
PARAMETERS_KEY = "parameters"
# What people send over a network; the other decoders are for files that a person has put into a folder.
COMMON_FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "HEIF")
# EPS starts another program, WMF is drawn by Windows, and the others know only what their files are called.
_REFUSED_FORMATS = frozenset({"EPS", "WMF", "BUFR", "GRIB", "HDF5", "MPEG", "IPTC"})
_HEIC_SUFFIXES = frozenset({".heic", ".heif", ".hif"})
_SAMPLER_NAMES = {"dpmpp_2m": "DPM++ 2M", "euler": "Euler", "euler_ancestral": "Euler a", "ddim": "DDIM"}
_PNG_END = b"IEND\xaeB`\x82"
_TAIL = 1 << 16
_ORIENTATION = 0x0112
_LYING = frozenset({5, 6, 7, 8})  # EXIF orientations that swap width and height
_SPACES = {"RGB": "RGB", "CMYK": "CMYK", "GRAY": "L", "Lab": "LAB"}


# Reading --------------------------------------------------------------------------------------------------------


def read_picture(
    source: Path | bytes, *, within: int = 0, most_pixels: int = MOST_PIXELS, formats: tuple[str, ...] = ()
) -> Image.Image:
    """The picture as people see it: RGB, 8 bits, sRGB, upright, its first frame, what is transparent on white.

    within: the longer side may come out smaller, but not below this many pixels, where the decoder can do that (JPEG);
    0 asks for all of it. formats: those that are accepted, by Pillow's names; all that are safe to read if empty.
    Raises InputError, in a sentence that says what to do, for what is no whole picture or has too many pixels.
    """
    with _opened(source, most_pixels, formats) as file:
        if within:
            file.draft(None, (within, within))
        return _flat(file, "white")


def load_picture(path: Path, *, within: int = 0) -> Image.Image | None:
    """`read_picture`; None if there is no picture or it is damaged."""
    try:
        return read_picture(path, within=within)
    except InputError:
        return None


def read_layers(path: Path) -> Image.Image:
    """`read_picture`, but RGBA where the picture has transparency, so that a part of it can be kept as it is. Raises
    InputError."""
    with _opened(path, MOST_PIXELS, ()) as file:
        return _layers(file)


def read_alpha(path: Path) -> Image.Image:
    """How opaque each pixel of a picture is, as "L", upright; white throughout where it has no transparency. Raises
    InputError."""
    with _opened(path, MOST_PIXELS, ()) as file:
        upright = _upright(file)
        if not _has_transparency(upright):
            return Image.new("L", upright.size, 255)
        return upright.convert("RGBA").getchannel("A")


def read_brightness(path: Path) -> Image.Image:
    """How bright each pixel of a mask is, as "L", upright; what is transparent counts as black. Raises InputError."""
    with _opened(path, MOST_PIXELS, ()) as file:
        return _flat(file, "black").convert("L")


def picture_size(source: Path | bytes) -> tuple[int, int]:
    """Width and height as shown, without decoding the picture. Raises InputError."""
    with _opened(source, MOST_PIXELS, (), whole=False) as file:
        lying = _exif(file).get(_ORIENTATION, 1) in _LYING
        return file.size[::-1] if lying else file.size


def is_readable(path: Path) -> bool:
    """Whether a file's name is that of a kind of picture which can be read here."""
    return path.suffix.lower() in picture_suffixes()


@cache
def picture_suffixes() -> frozenset[str]:
    """The endings of all kinds of picture that can be read, in lower case with the dot."""
    known = _formats()
    return frozenset(ending for ending, kind in Image.registered_extensions().items() if kind in known)


def wants_heic_extra(path: Path) -> bool:
    """Whether a file is one that only the extra `heic` can read, and that is not installed."""
    return path.suffix.lower() in _HEIC_SUFFIXES - picture_suffixes()


@cache
def _formats() -> tuple[str, ...]:
    """Pillow's names of the formats that are read, HEIC among them where its extra is installed."""
    try:
        from pillow_heif import register_heif_opener

        register_heif_opener()
    except ImportError:
        pass
    Image.init()
    return tuple(sorted(set(Image.OPEN) - _REFUSED_FORMATS))


@contextmanager
def _opened(
    source: Path | bytes, most_pixels: int, formats: tuple[str, ...], whole: bool = True
) -> Iterator[Image.Image]:
    """The file, its size judged before anything is decoded. Whatever a decoder raises becomes an InputError."""
    name = "The picture" if isinstance(source, bytes) else str(source)
    allowed = [each for each in formats or _formats() if each in _formats()]
    try:
        with warnings.catch_warnings():
            # Pillow warns of what it thinks large, where the limit is ours, and of damaged notes beside a whole picture.
            warnings.simplefilter("ignore")
            with Image.open(
                BytesIO(source) if isinstance(source, bytes) else source, formats=allowed
            ) as file:
                if file.width * file.height > most_pixels:
                    raise InputError(
                        f"{name} has {file.width} x {file.height} pixels, and at most {most_pixels:,} are read; "
                        "make it smaller."
                    )
                if whole and file.format == "PNG" and isinstance(source, Path) and not _has_end(source):
                    raise InputError(f"{name} is cut off; copy it again.")
                yield file
    except (InputError, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise InputError(f"{name} has more than {most_pixels:,} pixels; make it smaller.") from error
    except FileNotFoundError as error:
        raise InputError(f"{name} is not there.") from error
    except Exception as error:  # a decoder that is fed with anything may raise anything
        raise InputError(_unreadable(source, name)) from error


def _unreadable(source: Path | bytes, name: str) -> str:
    if isinstance(source, Path) and wants_heic_extra(source):
        return f"{name} is a HEIC picture; install the reader with: {install_command('heic')}"
    return f"{name} is not a picture that can be read; replace or remove it."


def _has_end(path: Path) -> bool:
    """Whether a PNG file's closing chunk is there; some programs write something of their own after it. The decoder
    itself lets a cut in the last few bytes pass."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _TAIL))
        return _PNG_END in file.read()


def _flat(file: Image.Image, ground: str) -> Image.Image:
    """The opened picture as plain RGB on a ground of one colour, without anything else the file said."""
    layers = _layers(file)
    if layers.mode == "RGB":
        return layers
    flat = Image.alpha_composite(Image.new("RGBA", layers.size, ground), layers).convert("RGB")
    flat.info.clear()
    return flat


def _layers(file: Image.Image) -> Image.Image:
    """The opened picture upright in sRGB: RGB, or RGBA where it has transparency, without anything else the file said."""
    profile = file.info.get("icc_profile")
    picture = _upright(file)
    if not _has_transparency(picture):
        colours = _to_srgb(_to_8_bits(picture), profile)
    else:
        layered = picture.convert("RGBA")
        colours = _to_srgb(layered.convert("RGB"), profile)
        colours.putalpha(layered.getchannel("A"))
    colours.info.clear()
    return colours


def _upright(file: Image.Image) -> Image.Image:
    """Turned as its EXIF data says; the opened picture itself where it says nothing, or where it is damaged. A large picture
    takes as long to copy as to decode."""
    file.load()
    try:
        lies = _exif(file).get(_ORIENTATION, 1) != 1
        return ImageOps.exif_transpose(file) if lies else file
    except Exception:
        return file


def _exif(file: Image.Image) -> Any:
    try:
        return file.getexif()
    except Exception:
        return {}


def _has_transparency(picture: Image.Image) -> bool:
    return picture.mode in {"RGBA", "LA", "PA", "RGBa", "La"} or "transparency" in picture.info


def _to_8_bits(picture: Image.Image) -> Image.Image:
    """Grey of 16 bits or of floating-point numbers scaled to 8; Pillow's own conversion cuts everything above 255."""
    if picture.mode.startswith("I"):
        levels = np.asarray(picture).astype(np.float64)
        top = max(65535.0, float(levels.max(initial=0)))
    elif picture.mode == "F":
        levels = np.nan_to_num(np.asarray(picture, np.float64))
        highest = float(levels.max(initial=0))
        top = 1.0 if highest <= 1 else max(255.0, highest)
    else:
        return picture
    return Image.fromarray(np.clip(np.rint(levels * (255 / top)), 0, 255).astype(np.uint8))


def _to_srgb(picture: Image.Image, profile: bytes | None) -> Image.Image:
    """RGB in sRGB. A profile that is damaged, or that is not one of this kind of picture, is passed over."""
    if profile and picture.mode in {"P", "1"}:
        picture = picture.convert("RGB")
    if profile or picture.mode == "LAB":
        try:
            given = ImageCms.ImageCmsProfile(BytesIO(profile) if profile else ImageCms.createProfile("LAB"))
            name = ImageCms.getProfileDescription(given)
            fits = _SPACES.get(given.profile.xcolor_space.strip()) == picture.mode
            if fits and "srgb" not in name.lower():
                return _converted(picture, given)
        except (ImageCms.PyCMSError, OSError, TypeError, ValueError):
            pass
    return picture.convert("RGB")


def _converted(picture: Image.Image, profile: ImageCms.ImageCmsProfile) -> Image.Image:
    target = ImageCms.createProfile("sRGB")
    done = ImageCms.profileToProfile(picture, profile, target, outputMode="RGB")
    assert done is not None  # None only where it converts in place
    return done


# Writing our own, and what they say of themselves -----------------------------------------------------------------


def save_picture(path: Path, image: Image.Image, record: PictureRecord) -> PictureRecord:
    """Writes `image` with its record inside, atomically, and returns the record with the file's hash. The texts are
    those by which A1111, ComfyUI and image viewers show its prompt."""
    notes = PngImagePlugin.PngInfo()
    notes.add_text(PARAMETERS_KEY, a1111_parameters(record))
    notes.add_text(RECORD_KEY, record.model_copy(update={"sha256": ""}).model_dump_json())
    write_aside(path, lambda aside: image.save(aside, format="PNG", pnginfo=notes))
    return record.model_copy(update={"sha256": file_hash(path)})


def read_record(path: Path) -> PictureRecord | None:
    """The record embedded in a picture, decodable or not; None if there is none."""
    try:
        with Image.open(path, formats=("PNG",)) as file:
            text = file.info.get(RECORD_KEY)
        return None if text is None else PictureRecord.model_validate_json(text)
    except (
        OSError,
        SyntaxError,
        ValueError,
        EOFError,
        struct.error,
        zlib.error,
        Image.DecompressionBombError,
        ValidationError,
    ):
        return None


def a1111_parameters(record: PictureRecord) -> str:
    """The form of the "parameters" text that most tools read."""
    request = record.request
    settings = {
        "Steps": request.steps,
        "Sampler": _SAMPLER_NAMES.get(request.sampler, request.sampler),
        "Schedule type": request.scheduler.capitalize(),
        "CFG scale": f"{request.cfg:g}",
        "Seed": request.seed,
        "Size": f"{request.width}x{request.height}",
        "Model": record.model,
    }
    lines = [request.prompt, *([f"Negative prompt: {request.negative}"] if request.negative else [])]
    return "\n".join([*lines, ", ".join(f"{name}: {value}" for name, value in settings.items())])
