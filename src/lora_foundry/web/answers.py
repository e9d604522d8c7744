"""Files as answers: with the tag by which a browser knows its copy, and for good where the address names the version."""

from __future__ import annotations

import mimetypes
from pathlib import Path

from fastapi import Request
from fastapi.responses import FileResponse, Response

from lora_foundry.web.thumbnails import Thumbnail

FOR_GOOD = "private, max-age=31536000, immutable"
ASK_AGAIN = "private, no-cache"
_TYPES = {".avif": "image/avif"}  # which some systems' tables lack
_SHOWN = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".avif"}  # SVG and HTML could run scripts


def can_be_shown(path: Path) -> bool:
    """Whether browsers show a picture of this kind as it lies on the disk."""
    return path.suffix.lower() in _SHOWN


def caching(request: Request) -> str:
    """An address with ?v= is another one when the file changes."""
    return FOR_GOOD if "v" in request.query_params else ASK_AGAIN


def picture_file(request: Request, path: Path) -> Response:
    """A picture as it lies on the disk."""
    kind = (
        _TYPES.get(path.suffix.lower()) or mimetypes.guess_type(path.name)[0] if can_be_shown(path) else None
    )
    answer = FileResponse(
        path, media_type=kind or "application/octet-stream", headers={"cache-control": caching(request)},
        stat_result=path.stat(),
    )  # fmt: skip
    return _unless_known(request, answer)


def thumbnail(request: Request, found: Thumbnail) -> Response:
    """A small picture from memory."""
    headers = {"etag": found.tag, "cache-control": caching(request)}
    return _unless_known(request, Response(found.data, media_type="image/webp", headers=headers))


def download(path: Path, name: str) -> Response:
    """A file to be saved under `name`, never to be shown."""
    return FileResponse(path, media_type="application/octet-stream", filename=name)


def _unless_known(request: Request, answer: Response) -> Response:
    tag = answer.headers.get("etag", "")
    if tag and tag in [each.strip() for each in request.headers.get("if-none-match", "").split(",")]:
        kept = {name: answer.headers[name] for name in ("etag", "cache-control")}
        return Response(status_code=304, headers=kept)
    return answer
