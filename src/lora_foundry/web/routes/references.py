"""Reference pictures: uploaded before a pipeline is started that names one."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter, File, Request, Response, UploadFile
from pydantic import BaseModel

from lora_foundry.web import answers, references
from lora_foundry.web.routes.dataset import PICTURE
from lora_foundry.web.safe_files import safe_file
from lora_foundry.web.site import Here
from lora_foundry.web.submission import REFERENCES

router = APIRouter(prefix="/api/v1/references", tags=["references"])


class ReferenceView(BaseModel):
    """`name` is what `POST /pipelines` takes as `reference`."""

    name: str
    width: int
    height: int
    url: str


@router.post("", status_code=201)
async def upload(here: Here, file: Annotated[UploadFile, File()]) -> ReferenceView:
    """A picture of at most 20 MiB and 40 megapixels, as a form's `file`: PNG, JPEG, WebP, AVIF, GIF, BMP, TIFF, or HEIC
    where its reader is installed. It is written anew."""
    data = await file.read()
    kept = await asyncio.to_thread(references.keep, here.settings.home.expanduser() / REFERENCES, data)
    return ReferenceView(url=f"/api/v1/references/{kept.name}", **kept._asdict())


@router.get("/{name}", response_class=Response, responses=PICTURE)
async def read(here: Here, request: Request, name: str) -> Response:
    """An uploaded picture."""
    return answers.picture_file(request, safe_file(here.settings.home.expanduser() / REFERENCES, name))
