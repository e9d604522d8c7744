"""The before/after grid: the first thing anyone wants to see of a LoRA, the same prompt and seed without and with it."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from lora_foundry.domain.character import Character
from lora_foundry.domain.dataset import PictureRecord
from lora_foundry.storage import write_bytes

COLUMNS, CELL, GAP, LABEL, HEAD = 6, 192, 8, 40, 34
_PAPER, _INK, _SOFT = (250, 249, 246), (28, 28, 32), (110, 110, 120)


def draw_before_after(
    path: Path,
    character: Character,
    records: Sequence[PictureRecord],
    before: Sequence[Image.Image],
    after: Sequence[Image.Image],
) -> None:
    """Writes a PNG of two rows, without and with the LoRA; columns are spread over all prompts."""
    columns = spread(len(records), COLUMNS)
    left = 92
    width = left + len(columns) * (CELL + GAP) + GAP
    height = HEAD + 2 * (CELL + GAP) + LABEL
    sheet = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(sheet)
    title = f"“{character.trigger}”: the trigger word alone, same prompts and seeds"
    draw.text((GAP * 2, 9), title, fill=_INK, font=_font(16))
    for row, (label, images) in enumerate((("before", before), ("after", after))):
        top = HEAD + row * (CELL + GAP)
        draw.text((GAP * 2, top + CELL // 2 - 10), label, fill=_INK, font=_font(18))
        for place, column in enumerate(columns):
            sheet.paste(enlarge(images[column], CELL), (left + place * (CELL + GAP), top))
    for place, column in enumerate(columns):
        shot = records[column].shot
        for line, words in enumerate((shot.pose, shot.expression)):
            at = (left + place * (CELL + GAP), HEAD + 2 * (CELL + GAP) + line * 16)
            draw.text(at, words, fill=_SOFT, font=_font(13))
    data = BytesIO()
    sheet.save(data, format="PNG", optimize=True)
    write_bytes(path, data.getvalue())


def spread(count: int, wanted: int) -> list[int]:
    """At most `wanted` positions out of `count`, evenly apart."""
    few = min(count, wanted)
    return [place * count // few for place in range(few)]


def enlarge(image: Image.Image, size: int) -> Image.Image:
    """Fits a picture into a square of `size`; small ones keep their pixels sharp."""
    small = max(image.size) * 2 <= size
    scale = size / max(image.size)
    new = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.convert("RGB").resize(new, Image.Resampling.NEAREST if small else Image.Resampling.LANCZOS)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
