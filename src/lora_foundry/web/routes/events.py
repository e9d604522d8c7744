"""Server-sent events: `pipeline` (a PipelineView), `gone`, and `hello` or `reset`, after which a page asks for
everything once."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Header
from fastapi.responses import StreamingResponse

from lora_foundry.web.site import Here, Site

router = APIRouter(prefix="/api/v1", tags=["events"])
LastId = Annotated[str | None, Header(alias="Last-Event-ID", max_length=80)]
_STREAM: dict[int | str, dict[str, object]] = {
    200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}, "description": "Until you leave."}
}


class EventStream(StreamingResponse):
    media_type = "text/event-stream"


@router.get("/events", response_class=EventStream, responses=_STREAM)
async def events(here: Here, last_event_id: LastId = None) -> EventStream:
    """What changes in any pipeline."""
    return await _stream(here, None, last_event_id)


@router.get("/pipelines/{pipeline}/events", response_class=EventStream, responses=_STREAM)
async def pipeline_events(here: Here, pipeline: str, last_event_id: LastId = None) -> EventStream:
    """What changes in one pipeline, whose present state comes first."""
    found = await here.pipeline(pipeline)
    return await _stream(here, found.id, last_event_id)


async def _stream(here: Site, pipeline: str | None, last_id: str | None) -> EventStream:
    stream = await here.hub.stream(pipeline, last_id)
    return EventStream(stream, headers={"x-accel-buffering": "no"})
