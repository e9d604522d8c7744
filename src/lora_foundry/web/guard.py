"""Stands before every route: who asks, from which page, under which name of this machine; and the headers that
keep a browser from doing more with an answer than it should.

Without a token only this machine is served, and only under a loopback name, so that no page on the web can reach it
by having its own name point here (DNS rebinding). With a token any name will do: the cookie belongs to one name. A
write must come from a page of the same origin, or from a program that is no browser."""

from __future__ import annotations

import ipaddress
from http.cookies import CookieError, SimpleCookie
from urllib.parse import quote, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lora_foundry.web.problems import problem
from lora_foundry.web.references import MOST_UPLOAD
from lora_foundry.web.sessions import COOKIE, GuessLimit, Sessions

READS = frozenset({"GET", "HEAD", "OPTIONS"})
OPEN_PATHS = frozenset({"/login", "/api/v1/health", "/favicon.ico"})
OPEN_FOLDER = "/static/"
FOR_PROGRAMS = (
    "/api/",
    "/metrics",
    "/mcp",
)  # whoever asks for these without a token is told so, and sent to no page
BODY_BYTES = 1_000_000
# What may be larger: a reference picture with the form around it, and a part of somebody's own pictures.
LARGE_BODIES = {
    "/api/v1/references": MOST_UPLOAD + 65_536,
    "/api/v1/uploads": (256 << 20) + 65_536,
    "/mcp": MOST_UPLOAD * 4 // 3 + 65_536,  # a reference picture as base64
}
_TOO_LARGE = (
    "The request is too large: a reference picture may have 20 MiB, own pictures 256 MiB, anything else 1 MB."
)
CONTENT_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; font-src 'self'; "
    "connect-src 'self'; frame-src 'self'; manifest-src 'self'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": CONTENT_POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


class Guard:
    """The ASGI middleware."""

    def __init__(self, app: ASGIApp, sessions: Sessions, limit: GuessLimit, root: str = "") -> None:
        self._app, self._sessions, self._limit, self._root = app, sessions, limit, root

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        answer = self._refusal(scope)
        most = LARGE_BODIES.get(scope["path"], BODY_BYTES)
        await (answer or self._app)(scope, _limited(receive, most), _with_headers(send))

    def _refusal(self, scope: Scope) -> Response | None:
        """What is answered instead of the route's answer; None lets the request through."""
        headers, path = Headers(scope=scope), str(scope["path"])
        host = headers.get("host", "")
        if not self._sessions.needed and not is_loopback(host_name(host)):
            return problem(
                421, f"This server answers on this machine only, not under the name {host[:80]!r}.", path
            )
        if scope["method"] not in READS and not same_origin(headers, host):
            return problem(403, "A write must come from this server's own pages.", path)
        if _length(headers) > LARGE_BODIES.get(path, BODY_BYTES):
            return problem(413, _TOO_LARGE, path)
        if not self._sessions.needed or path in OPEN_PATHS or path.startswith(OPEN_FOLDER):
            return None
        return self._unknown(scope, headers, path)

    def _unknown(self, scope: Scope, headers: Headers, path: str) -> Response | None:
        """The answer to somebody without token or cookie; None for somebody who has one."""
        if self._sessions.is_cookie(_cookie(headers)):
            return None
        scheme, _, token = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            address = (scope.get("client") or ("",))[0]
            if wait := self._limit.wait(address):
                return too_many(wait, path)
            if self._sessions.is_token(token.strip()):
                return None
            self._limit.count(address)
        elif not path.startswith(FOR_PROGRAMS) and scope["method"] in READS:
            wanted = quote(f"{self._root}{path}")
            return RedirectResponse(f"{self._root}/login?next={wanted}", status_code=303)
        return problem(
            401,
            "Send the token that was printed when the server was started, as `Authorization: Bearer TOKEN`.",
            path,
            headers={"www-authenticate": "Bearer"},
        )


def too_many(wait: int, path: str) -> Response:
    """The answer to somebody who guesses tokens."""
    return problem(
        429, f"Too many wrong tokens; try again in {wait} s.", path, headers={"retry-after": str(wait)}
    )


def host_name(host: str) -> str:
    """The name in a Host header, without port and brackets; empty for what is none."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def is_loopback(name: str) -> bool:
    """Whether a name means this machine whatever a name server says."""
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def same_origin(headers: Headers, host: str) -> bool:
    """Whether the page that sent this is one of ours; a program that is no browser says nothing."""
    origin = headers.get("origin")
    if origin is not None:
        return urlsplit(origin).netloc.lower() == host.lower() if origin != "null" else False
    return headers.get("sec-fetch-site", "none") in ("none", "same-origin")


def _cookie(headers: Headers) -> str:
    try:
        found = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
    except CookieError:
        return ""
    return found.value if found else ""


def _length(headers: Headers) -> int:
    """What the client says of its body; the server refuses what is no number before it comes here."""
    given = headers.get("content-length", "")
    return int(given) if given.isdecimal() else 0


def _limited(receive: Receive, most: int) -> Receive:
    """Counts what comes of a body, since a client need not say its length before."""
    got = 0

    async def receiving() -> Message:
        nonlocal got
        message = await receive()
        got += len(message.get("body", b""))
        if got > most:
            raise HTTPException(413, _TOO_LARGE)
        return message

    return receiving


def _with_headers(send: Send) -> Send:
    """Adds our headers to an answer, except where the route has set its own."""

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers.setdefault(name, value)
        await send(message)

    return sending
