"""Behind another server: a path in front of ours is taken off, and what that server says of the visitor (address, https, the
name that was asked for) is believed where it comes from an address that was named as trusted, and from nobody else."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Sequence
from typing import cast

from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from lora_foundry.errors import InputError

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def check_root(path: str) -> str:
    """`/foundry` for "/foundry/" and "foundry"; "" for none. Raises InputError for what is no path."""
    plain = path.strip().strip("/")
    if not plain:
        return ""
    if not all(
        part and part.replace("-", "").replace("_", "").replace(".", "").isalnum()
        for part in plain.split("/")
    ):
        raise InputError(f"--root-path {path!r} is no path; write it as /foundry.")
    return f"/{plain}"


def check_proxies(names: Sequence[str]) -> tuple[Network, ...]:
    """The networks that are trusted. Raises InputError for what is no address."""
    try:
        return tuple(ipaddress.ip_network(name.strip(), strict=False) for name in names if name.strip())
    except ValueError as error:
        raise InputError(
            f"--trusted-proxy: {error}; write an address or a network, such as 127.0.0.1 or 10.0.0.0/8."
        ) from error


class Proxied:
    """The ASGI middleware, outermost of all."""

    def __init__(self, app: ASGIApp, root: str = "", trusted: Sequence[Network] = ()) -> None:
        hosts = [str(network) for network in trusted]
        # Starlette and uvicorn have each a type of their own for the one protocol.
        wrap = cast("Callable[..., ASGIApp]", ProxyHeadersMiddleware)
        self._app: ASGIApp = wrap(app, trusted_hosts=hosts) if hosts else app
        self._root, self._trusted = root, trusted

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope = self._with_named_host(self._below_root(scope))
        await self._app(scope, receive, send)

    def _below_root(self, scope: Scope) -> Scope:
        """The path without the root, whether or not the proxy has taken that off."""
        path = str(scope["path"])
        if not self._root or not (path == self._root or path.startswith(f"{self._root}/")):
            return scope
        raw = scope.get("raw_path") or path.encode()
        return {
            **scope,
            "path": path[len(self._root) :] or "/",
            "raw_path": raw[len(self._root) :] or b"/",
        }

    def _with_named_host(self, scope: Scope) -> Scope:
        named = [value for name, value in scope["headers"] if name == b"x-forwarded-host"]
        if not named or not self._is_trusted((scope.get("client") or ("",))[0]):
            return scope
        host = named[-1].split(b",")[0].strip()
        headers = [(name, value) for name, value in scope["headers"] if name != b"host"]
        return {**scope, "headers": [*headers, (b"host", host)]}

    def _is_trusted(self, address: str) -> bool:
        try:
            return any(ipaddress.ip_address(address) in network for network in self._trusted)
        except ValueError:
            return False
