"""Own pictures: uploaded before a pipeline is started that names them."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter, File, Form, UploadFile
from pydantic import BaseModel

from lora_foundry.web import uploads
from lora_foundry.web.site import Here

router = APIRouter(prefix="/api/v1/uploads", tags=["uploads"])


class LeftOutView(BaseModel):
    """A file that cannot be trained on, and why."""

    name: str
    reason: str


class UploadView(BaseModel):
    """`id` is what `POST /pipelines` takes as `upload`. Zip files are opened when the run starts."""

    id: str
    pictures: int
    zips: int
    left_out: list[LeftOutView]


@router.post("", status_code=201)
async def upload(
    here: Here,
    files: Annotated[list[UploadFile], File(description="Pictures, captions, masks or zip files.")],
    upload: Annotated[str | None, Form(max_length=64, description="Add to these.")] = None,
) -> UploadView:
    """Own pictures, up to 256 MiB a request; many requests may add to one upload. Kept for a week."""
    sent = [(file.filename or "", file.file) for file in files]
    return _view(await asyncio.to_thread(uploads.add, here.settings, upload, sent))


@router.get("/{upload}")
async def read(here: Here, upload: str) -> UploadView:
    """What lies under an id, and what of it cannot be used."""
    return _view(await asyncio.to_thread(uploads.look, here.settings, upload))


@router.delete("/{upload}", status_code=204)
async def forget(here: Here, upload: str) -> None:
    """Removes what was uploaded."""
    await asyncio.to_thread(uploads.forget, here.settings, upload)


def _view(found: uploads.Uploaded) -> UploadView:
    left_out = [LeftOutView(name=name, reason=reason) for name, reason in found.left_out[:200]]
    return UploadView(id=found.id, pictures=found.pictures, zips=found.zips, left_out=left_out)
