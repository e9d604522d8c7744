"""Whether the server lives, and its figures for Prometheus."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter, Response
from pydantic import BaseModel

from lora_foundry import __version__
from lora_foundry.web.metrics import CONTENT_TYPE, exposition
from lora_foundry.web.site import Here

router = APIRouter(tags=["server"])


class Health(BaseModel):
    """`ok` where the task table answers."""

    status: Literal["ok"]
    version: str


@router.get("/api/v1/health")
async def health(here: Here) -> Health:
    """Needs no token. 503 where the task table does not answer."""
    await here.store.counts()
    return Health(status="ok", version=__version__)


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def metrics(here: Here) -> Response:
    """Figures in Prometheus' text format."""
    return Response(await exposition(here), media_type=CONTENT_TYPE)
