"""A server that asks for its token, and whoever does not have it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import PATIENCE, Server, settled

TOKEN = "a-token-for-the-tests-only"
expect.set_options(timeout=PATIENCE)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    home: Path = tmp_path_factory.mktemp("guarded")
    server = Server(home, token=TOKEN)
    server.start()
    yield server
    server.stop()


def test_only_the_token_opens_the_pages(server: Server, open_page: Callable[..., Page]) -> None:
    page = open_page(f"{server.url}/system")
    expect(page).to_have_url(re.compile(r"/login\?next=/system"))
    assert page.request.get(f"{server.url}/api/v1/pipelines").status == 401
    page.get_by_label("Token").fill("not the token at all")
    page.get_by_role("button", name="Log in").click()
    expect(page.get_by_role("alert")).to_have_text("That is not the token.")
    assert page.request.get(f"{server.url}/api/v1/pipelines").status == 401

    page.get_by_label("Token").fill(TOKEN)
    page.get_by_role("button", name="Log in").click()
    expect(page).to_have_url(f"{server.url}/system")
    expect(settled(page).get_by_role("heading", name="Workers")).to_be_visible()
    assert TOKEN not in page.content()


@pytest.mark.parametrize(
    "target", ["//evil.example/", "https://evil.example/", "/\\evil.example", "javascript:alert(1)"]
)
def test_a_login_leads_to_no_other_site(server: Server, open_page: Callable[..., Page], target: str) -> None:
    page = open_page(f"{server.url}/login")
    page.goto(f"{server.url}/login?next={target}")
    page.get_by_label("Token").fill(TOKEN)
    page.get_by_role("button", name="Log in").click()
    expect(page).to_have_url(f"{server.url}/")


def test_a_session_that_is_over_leads_back_to_the_login(
    server: Server, open_page: Callable[..., Page]
) -> None:
    page = open_page(f"{server.url}/login")
    page.get_by_label("Token").fill(TOKEN)
    page.get_by_role("button", name="Log in").click()
    expect(page).to_have_url(f"{server.url}/")
    settled(page)
    page.context.clear_cookies()
    page.get_by_label("State").select_option("failed")
    expect(page).to_have_url(re.compile(r"/login\?next="))
