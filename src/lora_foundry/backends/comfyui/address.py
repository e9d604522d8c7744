"""Where a ComfyUI server is, as people write it: with or without `http://`, with a name and a password before the host, or
behind a proxy that asks for a token. What goes into messages and records never holds a password."""

from __future__ import annotations

import base64
import ssl
from dataclasses import dataclass, field
from functools import cached_property
from urllib.parse import unquote, urlsplit, urlunsplit

import httpx

from lora_foundry.errors import InputError


@dataclass(frozen=True)
class Address:
    """`url` as it may be shown, without a slash at its end, and the headers that the server's door wants."""

    url: str
    headers: dict[str, str] = field(default_factory=dict, repr=False)

    @property
    def socket(self) -> str:
        """The same place for a WebSocket."""
        return self.url.replace("http", "ws", 1)

    @cached_property
    def certificates(self) -> ssl.SSLContext | None:
        """Whom a server behind TLS may be vouched for by, for both ways to it: those whom the system trusts (or the file of
        SSL_CERT_FILE, as for a proxy with a certificate of one's own), and the public ones. None for plain HTTP: they take
        longer to load than a picture takes to fetch."""
        if not self.url.startswith("https"):
            return None
        trusted = httpx.create_ssl_context()
        trusted.load_default_certs()
        return trusted


def address_of(written: str | Address, token: str = "") -> Address:
    """What a person wrote. token: sent as a bearer token. Raises InputError for what is no address."""
    if isinstance(written, Address):
        return written
    text = written.strip()
    try:
        parts = urlsplit(text if "://" in text else f"http://{text}")
        port = parts.port
    except ValueError as error:
        raise InputError(f"{written!r} is no address of a server: {error}.") from error
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InputError(f"{written!r} is no address of a server; write it as http://127.0.0.1:8188.")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    place = host if port is None else f"{host}:{port}"
    headers: dict[str, str] = {}
    if parts.username is not None:
        pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        headers["Authorization"] = "Basic " + base64.b64encode(pair.encode()).decode()
    elif token:
        headers["Authorization"] = f"Bearer {token}"
    return Address(urlunsplit((parts.scheme, place, parts.path.rstrip("/"), "", "")), headers)
