"""Errors as RFC 9457 problem details: one shape for every fault, whether a program or a person reads it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from pydantic import BaseModel
from sqlalchemy.exc import DBAPIError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from lora_foundry.errors import FoundryError, InputError, MissingExtraError, PermanentError, StorageError
from lora_foundry.files.storage import storage_error
from lora_foundry.tasks.database import database_error

MEDIA_TYPE = "application/problem+json"
logger = logging.getLogger(__name__)


class NotFoundError(InputError):
    """What the address names is not there."""


class ConflictError(InputError):
    """What is asked for does not fit the state that the thing is in."""


class Fault(BaseModel):
    """One value that was refused: where it stands in the request, and why."""

    where: str
    message: str


class Problem(BaseModel):
    """RFC 9457. `type` is about:blank, so that `title` is the status in words; `detail` says what to do."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    instance: str | None = None
    errors: list[Fault] | None = None


# For routers: every fault that a client can cause has this shape.
RESPONSES: dict[int | str, dict[str, Any]] = {
    code: {"model": Problem, "description": HTTPStatus(code).phrase, "content": {MEDIA_TYPE: {}}}
    for code in (401, 403, 404, 409, 413, 415, 422, 429)
}


# For routes that draw: the machine does one thing at a time.
BUSY: dict[int | str, dict[str, Any]] = {
    503: {"model": Problem, "description": "Something else is under way.", "content": {MEDIA_TYPE: {}}}
}


def problem(
    status: int,
    detail: str,
    instance: str | None = None,
    errors: list[Fault] | None = None,
    headers: dict[str, str] | None = None,
) -> JSONResponse:
    """A response with this status and these words."""
    content = Problem(
        title=HTTPStatus(status).phrase, status=status, detail=detail, instance=instance, errors=errors
    )
    return JSONResponse(
        content.model_dump(exclude_none=True), status_code=status, media_type=MEDIA_TYPE, headers=headers
    )


def status_of(error: FoundryError) -> int:
    """The HTTP status that says the same as the error's kind."""
    for kind, status in (
        (NotFoundError, HTTPStatus.NOT_FOUND),
        (ConflictError, HTTPStatus.CONFLICT),
        (StorageError, HTTPStatus.INSUFFICIENT_STORAGE),
        (MissingExtraError, HTTPStatus.NOT_IMPLEMENTED),
        (PermanentError, HTTPStatus.UNPROCESSABLE_ENTITY),
    ):
        if isinstance(error, kind):
            return int(status)
    return int(HTTPStatus.SERVICE_UNAVAILABLE)


def install(
    app: FastAPI, page: Callable[[str, str], str], database: sa.URL, tell: Callable[[str], str]
) -> None:
    """Has every error of this app answered as a problem; whoever looks for a page gets one, which `page(title, text)`
    makes. tell: takes out of a sentence what a client need not know."""

    def answer(request: Request, status: int, detail: str, headers: dict[str, str] | None = None) -> Response:
        detail = tell(detail)
        if _wants_page(request):
            return HTMLResponse(page(HTTPStatus(status).phrase.capitalize(), detail), status, headers)
        return problem(status, detail, request.url.path, headers=headers)

    @app.exception_handler(FoundryError)
    async def ours(request: Request, error: FoundryError) -> Response:
        return answer(request, status_of(error), str(error))

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        faults = [_fault(each) for each in error.errors()]
        first = f"{faults[0].where}: {faults[0].message}" if faults else "The request cannot be read."
        return problem(422, first, request.url.path, faults)

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        headers = dict(error.headers) if error.headers else None
        words = "There is no such page." if error.status_code == HTTPStatus.NOT_FOUND else str(error.detail)
        return answer(request, error.status_code, words, headers)

    @app.exception_handler(DBAPIError)
    async def database_failed(request: Request, error: DBAPIError) -> Response:
        logger.warning("The task database does not answer: %s", error)
        return answer(request, 503, str(database_error(error, database)))

    @app.exception_handler(OSError)
    async def system(request: Request, error: OSError) -> Response:
        logger.warning("A file cannot be read or written: %s", error)
        path = Path(str(error.filename)) if error.filename else Path()
        return answer(request, status_of(StorageError()), str(storage_error(path, error)))

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> Response:
        return answer(request, 500, "This is a fault of the server; its log says more.")


def _wants_page(request: Request) -> bool:
    """Whether a person's browser asks for a page, and not a program or a script for data."""
    page = request.method in ("GET", "HEAD") and not request.url.path.startswith(("/api/", "/static/"))
    return page and "text/html" in request.headers.get("accept", "")


def _fault(error: Any) -> Fault:
    """pydantic's finding without the refused value, which may be a megabyte long."""
    where = ".".join(str(part) for part in error["loc"])
    return Fault(where=where, message=str(error["msg"]).removeprefix("Value error, ")[:500])
