"""Pictures on disk: PNG files that carry how they were made, so that a picture is known for what it is after
a crash, a move or a download, and so that A1111, ComfyUI and image viewers show its prompt."""

from __future__ import annotations

import hashlib
import struct
import zlib
from pathlib import Path

from PIL import Image, PngImagePlugin, UnidentifiedImageError
from pydantic import ValidationError

from lora_foundry.domain.dataset import PictureRecord
from lora_foundry.files.paths import RunPaths
from lora_foundry.files.storage import write_aside

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
RECORD_KEY = "lora_foundry"
PARAMETERS_KEY = "parameters"
_SAMPLER_NAMES = {"dpmpp_2m": "DPM++ 2M", "euler": "Euler", "euler_ancestral": "Euler a", "ddim": "DDIM"}
_PNG_END = b"IEND\xaeB`\x82"
_TAIL = 1 << 16
# What PIL raises for files that are no whole picture, depending on where the damage is.
_DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    UnidentifiedImageError,
)


def save_picture(path: Path, image: Image.Image, record: PictureRecord) -> PictureRecord:
    """Writes `image` with its record inside, atomically, and returns the record with the file's hash."""
    notes = PngImagePlugin.PngInfo()
    notes.add_text(PARAMETERS_KEY, a1111_parameters(record))
    notes.add_text(RECORD_KEY, record.model_copy(update={"sha256": ""}).model_dump_json())
    write_aside(path, lambda aside: image.save(aside, format="PNG", pnginfo=notes))
    return record.model_copy(update={"sha256": file_hash(path)})


def load_picture(path: Path) -> Image.Image | None:
    """The decoded RGB picture; None if there is none or it is damaged."""
    try:
        with Image.open(path) as file:
            if file.format == "PNG" and not _has_end(path):
                return None  # a cut in the last few bytes, which the decoder itself lets pass
            return file.convert("RGB")
    except _DAMAGE:
        return None


def _has_end(path: Path) -> bool:
    """Whether a PNG file's closing chunk is there; some programs write something of their own after it."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _TAIL))
        return _PNG_END in file.read()


def read_record(path: Path) -> PictureRecord | None:
    """The record embedded in a picture, decodable or not; None if there is none."""
    try:
        with Image.open(path) as file:
            text = file.info.get(RECORD_KEY)
        return None if text is None else PictureRecord.model_validate_json(text)
    except (*_DAMAGE, ValidationError):
        return None


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


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


def own_pictures(paths: RunPaths) -> list[Path]:
    """The user's own pictures in images/: those whose names are not ours."""
    found = [
        path
        for path in sorted(paths.images.glob("*"))
        if path.suffix.lower() in PICTURES and path.name[0] != "."
    ]
    return [path for path in found if not is_ours(path, paths)]


def is_ours(path: Path, paths: RunPaths) -> bool:
    """Whether a file in images/ bears a name that the plan gives."""
    number = path.stem.removeprefix(f"{paths.slug}_")
    return path.suffix == ".png" and number != path.stem and number.isdecimal()
