"""Who may come in: the token itself, or a cookie that was made from it; and how often it may be guessed.

The cookie holds its end and a signature by the token: nothing is stored, it outlives a restart as long as the
token does, and a new token makes all cookies worthless."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections import OrderedDict, deque
from collections.abc import Callable

from lora_foundry.errors import InputError

COOKIE = "lora_foundry_session"
COOKIE_SECONDS = 30 * 24 * 3600
LEAST_TOKEN = 16
GUESSES, GUESS_SECONDS = 5, 60.0
_MOST_GUESSERS = 1000


def new_token() -> str:
    """256 random bits, safe in headers and addresses."""
    return secrets.token_urlsafe(32)


def check_token(token: str) -> str:
    """The token. Raises InputError for one that is short enough to be guessed or cannot stand in a header."""
    if len(token) < LEAST_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
        raise InputError(
            f"LORA_FOUNDRY_TOKEN must be {LEAST_TOKEN} or more ASCII characters without spaces; "
            "leave it unset to have one made."
        )
    return token


class Sessions:
    """Checks tokens and cookies in constant time."""

    def __init__(self, token: str | None, clock: Callable[[], float] = time.time) -> None:
        self._token, self._clock = token, clock

    @property
    def needed(self) -> bool:
        return self._token is not None

    def is_token(self, given: str) -> bool:
        return self._token is not None and _same(given, self._token)

    def make_cookie(self) -> str:
        end = str(int(self._clock()) + COOKIE_SECONDS)
        return f"{end}.{self._sign(end)}"

    def is_cookie(self, given: str) -> bool:
        end, _, signature = given.partition(".")
        if not (end.isascii() and end.isdigit() and len(end) < 12):
            return False
        return self._token is not None and _same(signature, self._sign(end)) and int(end) > self._clock()

    def _sign(self, text: str) -> str:
        key = (self._token or "").encode()
        return hmac.new(key, f"session {text}".encode(), hashlib.sha256).hexdigest()


def _same(first: str, second: str) -> bool:
    return hmac.compare_digest(first.encode(), second.encode())


class GuessLimit:
    """At most GUESSES wrong tokens an address a minute. Remembers a bounded number of addresses."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._wrong: OrderedDict[str, deque[float]] = OrderedDict()

    def wait(self, address: str) -> int:
        """Seconds until this address may try again; 0 if it may now."""
        wrong = self._wrong.get(address)
        now = self._clock()
        while wrong and now - wrong[0] >= GUESS_SECONDS:
            wrong.popleft()
        if wrong is None or len(wrong) < GUESSES:
            return 0
        return int(GUESS_SECONDS - (now - wrong[0])) + 1

    def count(self, address: str) -> None:
        """Notes a wrong token."""
        self._wrong.setdefault(address, deque(maxlen=GUESSES)).append(self._clock())
        self._wrong.move_to_end(address)
        while len(self._wrong) > _MOST_GUESSERS:
            self._wrong.popitem(last=False)
