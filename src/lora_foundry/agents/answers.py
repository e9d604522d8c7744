"""What tools answer with: JSON for the model, pictures that it can look at, and links to files that it may read later; and
errors as the sentence that a person would get."""

from __future__ import annotations

import base64
import functools
import json
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from pydantic import BaseModel

from lora_foundry.agents.sdk import (
    CallToolResult,
    ContentBlock,
    ImageContent,
    ResourceNotFoundError,
    TextContent,
    ToolError,
)
from lora_foundry.errors import FoundryError
from lora_foundry.web.site import Site

P = ParamSpec("P")
T = TypeVar("T")
PICTURE_EDGE = 512  # pixels; enough to judge a character, little enough for a model's context
GRID_EDGE = 1024
MOST_PICTURES = 6


def answer(said: BaseModel | dict[str, Any], *more: ContentBlock) -> CallToolResult:
    """JSON as text and as structured content, and whatever is to be seen with it."""
    content = said.model_dump(mode="json") if isinstance(said, BaseModel) else said
    text = TextContent(type="text", text=json.dumps(content, ensure_ascii=False))
    return CallToolResult(content=[text, *more], structured_content=content)


async def picture(site: Site, path: Path, edge: int = PICTURE_EDGE) -> ImageContent:
    """A picture file as WebP within `edge` pixels. Raises NotFoundError for what is no picture."""
    small = await site.thumbnails.of(path, edge)
    return ImageContent(type="image", data=base64.b64encode(small.data).decode(), mime_type="image/webp")


async def pictures(site: Site, paths: Sequence[Path]) -> list[ImageContent]:
    """The first MOST_PICTURES of them."""
    return [await picture(site, path) for path in paths[:MOST_PICTURES]]


def in_words(tool: Callable[P, Awaitable[T]]) -> Callable[P, Awaitable[T]]:
    """Errors of ours as the protocol's: the model reads the sentence, which says what to do next."""

    @functools.wraps(tool)
    async def told(*given: P.args, **named: P.kwargs) -> T:
        try:
            return await tool(*given, **named)
        except FoundryError as error:
            raise ToolError(str(error)) from error

    return told


def or_missing(resource: Callable[P, Awaitable[T]]) -> Callable[P, Awaitable[T]]:
    """The same for what is read by its address."""

    @functools.wraps(resource)
    async def told(*given: P.args, **named: P.kwargs) -> T:
        try:
            return await resource(*given, **named)
        except FoundryError as error:
            raise ResourceNotFoundError(str(error)) from error

    return told
