"""Errors as RFC 9457 problem details: one shape for every fault, whether a program or a person reads it."""

from __future__ import annotations

import logging
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from sqlalchemy.exc import DBAPIError
from starlette.exceptions import HTTPException

from lora_foundry.errors import FoundryError, InputError, MissingExtraError, PermanentError, StorageError

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


def install(app: FastAPI) -> None:
    """Has every error of this app answered as a problem."""

    @app.exception_handler(FoundryError)
    async def ours(request: Request, error: FoundryError) -> JSONResponse:
        return problem(status_of(error), str(error), request.url.path)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        faults = [_fault(each) for each in error.errors()]
        first = f"{faults[0].where}: {faults[0].message}" if faults else "The request cannot be read."
        return problem(422, first, request.url.path, faults)

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        headers = dict(error.headers) if error.headers else None
        return problem(error.status_code, str(error.detail), request.url.path, headers=headers)

    @app.exception_handler(DBAPIError)
    async def database(request: Request, error: DBAPIError) -> JSONResponse:
        logger.warning("The task database does not answer: %s", error)
        return problem(503, "The task database does not answer; try again soon.", request.url.path)

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> JSONResponse:
        return problem(500, "This is a fault of the server; its log says more.", request.url.path)


def _fault(error: Any) -> Fault:
    """pydantic's finding without the refused value, which may be a megabyte long."""
    where = ".".join(str(part) for part in error["loc"])
    return Fault(where=where, message=str(error["msg"]).removeprefix("Value error, ")[:500])
