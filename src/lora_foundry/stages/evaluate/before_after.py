"""The before/after grid: the first thing anyone wants to see of a LoRA, the same prompt and seed without
it and with it. Nothing is picked by hand or by score: the columns are spread evenly over the prompts."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from lora_foundry.domain.dataset import PictureRecord
from lora_foundry.domain.run import Run
from lora_foundry.files.storage import write_bytes
from lora_foundry.stages._shared.thumbnails import enlarge

COLUMNS, CELL, GAP, MARGIN = 6, 192, 10, 24
_LABEL, _HEAD, _FOOT = 116, 76, 50
_RADIUS, _SMOOTH = 10, 4
_PAPER, _INK, _SOFT, _ACCENT = (250, 249, 246), (27, 27, 31), (98, 98, 108), (59, 87, 214)
_NO_GLYPH = "\uffff"


def draw_before_after(
    path: Path,
    run: Run,
    records: Sequence[PictureRecord],
    before: Sequence[Image.Image],
    after: Sequence[Image.Image],
    details: tuple[str, str] = ("", ""),
    *,
    names: Sequence[str] = (),
) -> None:
    """Writes a PNG of two rows, without and with the LoRA; `details` is a line below each row's name. names: whom each
    picture was to show, where the LoRA draws several characters."""
    columns = spread(len(records), COLUMNS)
    left, top = MARGIN + _LABEL, _HEAD
    width = left + len(columns) * (CELL + GAP) - GAP + MARGIN
    sheet = Image.new("RGB", (width, top + 2 * (CELL + GAP) - GAP + _FOOT), _PAPER)
    draw = ImageDraw.Draw(sheet)
    _write_head(draw, run, width - 2 * MARGIN)
    rows = (("before", "without the LoRA", before), ("after", "with the LoRA", after))
    for row, (name, meaning, images) in enumerate(rows):
        y = top + row * (CELL + GAP)
        middle = y + CELL // 2
        draw.text((MARGIN, middle - 24), name, fill=_ACCENT if row else _INK, font=_font(22), anchor="lm")
        draw.text((MARGIN, middle), meaning, fill=_SOFT, font=_font(13), anchor="lm")
        draw.text((MARGIN, middle + 20), details[row], fill=_SOFT, font=_font(13), anchor="lm")
        for place, column in enumerate(columns):
            _paste(sheet, enlarge(images[column], CELL), (left + place * (CELL + GAP), y))
    for place, column in enumerate(columns):
        shot = records[column].shot
        x, y = left + place * (CELL + GAP), top + 2 * (CELL + GAP) - GAP
        first = names[column] if names and _has_letters(names[column]) else shot.expression
        for line, words in enumerate((first, shot.pose) if names else (shot.pose, shot.expression)):
            draw.text((x + CELL // 2, y + 14 + line * 17), words, fill=_SOFT, font=_font(13), anchor="mm")
    data = BytesIO()
    sheet.save(data, format="PNG", optimize=True)
    write_bytes(path, data.getvalue())


def _write_head(draw: ImageDraw.ImageDraw, run: Run, width: int) -> None:
    """The triggers and the description, as far as they fit and the font has their letters."""
    words = " ".join(f"“{trigger}”" for trigger in run.triggers)
    trigger = words if _has_letters(words) else "The trigger word alone"
    draw.text((MARGIN, 27), trigger, fill=_INK, font=_font(24), anchor="lm")
    drawn = draw.textlength(trigger, font=_font(24))
    note = "the trigger word alone, same prompts and seeds" if trigger[0] == "“" else "same prompts and seeds"
    draw.text((MARGIN + drawn + 14, 29), note, fill=_SOFT, font=_font(15), anchor="lm")
    draw.text((MARGIN, 53), _fit(draw, made_from(run), width), fill=_SOFT, font=_font(14), anchor="lm")


def made_from(run: Run) -> str:
    """What the person brought, in a line; empty where the font lacks its letters."""
    given = [f"pictures of: {run.described}"] if run.described.strip() else []
    if run.character.reference_image is not None:
        given.append("pictures drawn from one of the character")
    words = f"trained on {', '.join(given) or 'own pictures'}"
    return words if _has_letters(words) else ""


def _fit(draw: ImageDraw.ImageDraw, text: str, width: int) -> str:
    """The text, cut at a word where it is too long for its line."""
    if draw.textlength(text, font=_font(14)) <= width:
        return text
    words = text.split()
    while words and draw.textlength(" ".join(words) + " …", font=_font(14)) > width:
        words.pop()
    return " ".join(words) + " …"


def _has_letters(text: str) -> bool:
    """Whether the font that comes with Pillow can write this; it knows few letters beyond the English
    ones."""
    font = _font(14)
    missing = bytes(font.getmask(_NO_GLYPH))
    return all(letter.isspace() or bytes(font.getmask(letter)) != missing for letter in text)


def _paste(sheet: Image.Image, image: Image.Image, at: tuple[int, int]) -> None:
    """Puts a picture into the middle of its cell, with rounded corners."""
    large = Image.new("L", (image.width * _SMOOTH, image.height * _SMOOTH), 0)
    box = (0, 0, large.width - 1, large.height - 1)
    ImageDraw.Draw(large).rounded_rectangle(box, _RADIUS * _SMOOTH, fill=255)
    place = (at[0] + (CELL - image.width) // 2, at[1] + (CELL - image.height) // 2)
    sheet.paste(image, place, large.resize(image.size, Image.Resampling.BOX))


def spread(count: int, wanted: int) -> list[int]:
    """At most `wanted` positions out of `count`, evenly apart."""
    few = min(count, wanted)
    return [place * count // few for place in range(few)]


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
