"""Who may come in, and what can be reached from there."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from starlette.datastructures import Headers

from lora_foundry.errors import InputError
from lora_foundry.settings import Settings
from lora_foundry.web.guard import host_name, is_loopback, same_origin
from lora_foundry.web.problems import NotFoundError
from lora_foundry.web.routes.login import own_page
from lora_foundry.web.safe_files import safe_file
from lora_foundry.web.serving import access
from lora_foundry.web.sessions import COOKIE_SECONDS, GUESSES, GuessLimit, Sessions, check_token, new_token

TOKEN = "a-token-of-this-test"


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


# The jail ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def prison(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a file, links of every kind that lead out of it, and a secret beside it."""
    top = tmp_path_factory.mktemp("top")
    (top / "secret.txt").write_text("secret")
    root = top / "root"
    (root / "images").mkdir(parents=True)
    (root / "images" / "a.png").write_text("inside")
    (root / ".hidden").write_text("hidden")
    (root / "images" / "out.png").symlink_to(top / "secret.txt")
    (root / "images" / "relative.png").symlink_to("../../secret.txt")
    (root / "away").symlink_to(top)
    (root / "images" / "loop.png").symlink_to("loop.png")
    (root / "images" / "within.png").symlink_to("a.png")
    return root


@pytest.mark.parametrize("parts", [
    ("images", "out.png"), ("images", "relative.png"), ("images", "loop.png"), ("away", "secret.txt"), ("images",),
    ("..", "secret.txt"), ("images", "..", "..", "secret.txt"), ("/etc/passwd",), ("images/../../secret.txt",),
    ("images\\..\\secret.txt",), ("",), (".",), (".hidden",), ("images", "a.png\0"), ("images", "none.png"), ("C:a.png",),
    (),
])  # fmt: skip
def test_nothing_outside_the_folder_is_served(prison: Path, parts: tuple[str, ...]) -> None:
    with pytest.raises(NotFoundError):
        safe_file(prison, *parts)


def test_what_is_inside_is_served_by_its_real_path(prison: Path) -> None:
    assert safe_file(prison, "images", "a.png").read_text() == "inside"
    assert safe_file(prison, "images", "within.png") == (prison / "images" / "a.png").resolve()


PARTS = st.lists(
    st.one_of(
        st.sampled_from(
            ["images", "a.png", "..", ".", "away", "secret.txt", "out.png", "/", "~", "%2e%2e", "root"]
        ),
        st.text(max_size=12),
    ),
    max_size=5,
)


@examples(deadline=None)
@given(parts=PARTS)
def test_no_address_leads_out(prison: Path, parts: list[str]) -> None:
    try:
        found = safe_file(prison, *parts)
    except NotFoundError:
        return
    assert prison.resolve() in found.parents
    assert found.read_text() != "secret"


# Names and origins ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("host", "loopback"), [
    ("localhost", True), ("localhost:8189", True), ("LOCALHOST", True), ("foo.localhost:1", True), ("127.0.0.1:80", True),
    ("127.9.9.9", True), ("[::1]:8189", True), ("[::1]", True), ("evil.example", False), ("127.0.0.1.evil.example", False),
    ("localhost.evil.example", False), ("192.168.0.2", False), ("0.0.0.0:8189", False), ("", False), ("[::", False),
    ("evil.example@localhost", True), ("localhost@evil.example", False),
])  # fmt: skip
def test_a_loopback_name_is_known(host: str, loopback: bool) -> None:
    assert is_loopback(host_name(host)) is loopback


@pytest.mark.parametrize(("headers", "same"), [
    ({}, True),
    ({"origin": "http://localhost:8189"}, True),
    ({"origin": "https://localhost:8189"}, True),  # behind a proxy that speaks TLS
    ({"origin": "http://localhost:9"}, False),
    ({"origin": "http://evil.example"}, False),
    ({"origin": "null"}, False),
    ({"origin": ""}, False),
    ({"origin": "http://localhost:8189.evil.example"}, False),
    ({"sec-fetch-site": "cross-site"}, False),
    ({"sec-fetch-site": "same-site"}, False),
    ({"sec-fetch-site": "same-origin"}, True),
    ({"sec-fetch-site": "none"}, True),
])  # fmt: skip
def test_a_write_comes_from_a_page_of_ours(headers: dict[str, str], same: bool) -> None:
    assert same_origin(Headers(headers), "localhost:8189") is same


@pytest.mark.parametrize("target", [
    "//evil.example", "https://evil.example", "/\\evil.example", "javascript:alert(1)", "", "\\\\evil", "/a\r\nx: y",
])  # fmt: skip
def test_after_login_one_stays_here(target: str) -> None:
    assert own_page(target) == "/"


def test_after_login_one_goes_on() -> None:
    assert own_page("/pipelines/1?q=2") == "/pipelines/1?q=2"


# Tokens and cookies -----------------------------------------------------------------------------------------------


def test_a_cookie_is_good_until_its_end_and_for_its_token_only() -> None:
    clock = Clock()
    sessions = Sessions(TOKEN, clock)
    cookie = sessions.make_cookie()
    assert sessions.is_cookie(cookie)
    assert TOKEN not in cookie
    assert not Sessions("another-token-here", clock).is_cookie(cookie)
    end, signature = cookie.split(".")
    assert not sessions.is_cookie(f"{int(end) + 1}.{signature}")
    clock.now += COOKIE_SECONDS + 1
    assert not sessions.is_cookie(cookie)


@given(text=st.text(max_size=100))
def test_nothing_else_is_a_cookie_or_the_token(text: str) -> None:
    sessions = Sessions(TOKEN)
    assert not sessions.is_cookie(text)
    assert sessions.is_token(text) == (text == TOKEN)


def test_guesses_are_limited_by_address_and_forgotten_after_a_minute() -> None:
    clock = Clock()
    limit = GuessLimit(clock)
    for _ in range(GUESSES):
        assert limit.wait("1.1.1.1") == 0
        limit.count("1.1.1.1")
    assert 0 < limit.wait("1.1.1.1") <= 61
    assert limit.wait("2.2.2.2") == 0
    clock.now += 61
    assert limit.wait("1.1.1.1") == 0


def test_the_memory_of_guesses_is_bounded() -> None:
    limit = GuessLimit()
    for number in range(5000):
        limit.count(str(number))
    assert len(limit._wrong) <= 1000


def test_loopback_needs_no_token_and_any_other_address_one() -> None:
    assert access(Settings(), "127.0.0.1") == (None, False)
    token, made = access(Settings(), "0.0.0.0")
    assert made
    assert token is not None
    assert len(token) >= 40
    assert new_token() != token
    given = Settings(token=TOKEN)
    assert access(given, "0.0.0.0") == (TOKEN, False)
    assert access(given, "localhost") == (TOKEN, False)


@pytest.mark.parametrize(
    "token", ["", "short", "fifteen-letters", "with space inside it", "ümläute-überall-hier", "a" * 20 + "\n"]
)
def test_a_token_that_could_be_guessed_or_sent_by_no_header_is_refused(token: str) -> None:
    with pytest.raises(InputError):
        check_token(token)
