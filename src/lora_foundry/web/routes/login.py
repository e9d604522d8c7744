"""Trades the token for a cookie, so that a browser need not hold the token itself."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Form, Request
from fastapi.responses import RedirectResponse, Response

from lora_foundry.web.guard import too_many
from lora_foundry.web.problems import problem
from lora_foundry.web.routes import Page
from lora_foundry.web.sessions import COOKIE, COOKIE_SECONDS
from lora_foundry.web.site import Here

router = APIRouter(tags=["login"], include_in_schema=False)
PAGES = (Page("/login", "login"),)


@router.post("/login", status_code=303, response_class=RedirectResponse)
async def login(
    here: Here,
    request: Request,
    token: Annotated[str, Form(max_length=500)] = "",
    next: Annotated[str, Form(max_length=2000)] = "/",
) -> Response:
    """Sets the cookie and goes to `next`, a page of ours. 401 for a wrong token, 429 for too many of them."""
    address = request.client.host if request.client else ""
    if wait := here.limit.wait(address):
        return too_many(wait, "/login")
    if not here.sessions.needed:
        return RedirectResponse(own_page(next, here.root), status_code=303)
    if not here.sessions.is_token(token.strip()):
        here.limit.count(address)
        return problem(401, "That is not the token.", "/login")
    answer = RedirectResponse(own_page(next, here.root), status_code=303)
    answer.set_cookie(
        COOKIE,
        here.sessions.make_cookie(),
        max_age=COOKIE_SECONDS,
        httponly=True,
        samesite="strict",
        secure=request.url.scheme == "https",
    )
    return answer


@router.post("/logout", status_code=303, response_class=RedirectResponse)
async def logout(here: Here) -> Response:
    """Takes the cookie back."""
    answer = RedirectResponse(f"{here.root}/login", status_code=303)
    answer.delete_cookie(COOKIE, httponly=True, samesite="strict")
    return answer


def own_page(target: str, root: str = "") -> str:
    """`target` if it is a path on this server, else the first page: a link must not lead elsewhere after login."""
    plain = target.isprintable() and target.isascii()
    ours = plain and target[:1] == "/" and target[1:2] not in ("/", "\\")
    return target if ours and target != "/" else f"{root}/"
