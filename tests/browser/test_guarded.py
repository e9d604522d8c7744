"""A server that asks for its token, whoever does not have it, and users who write markup where words are asked for."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Page, expect

from tests.browser.conftest import PATIENCE, Server, settled

TOKEN = "a-token-for-the-tests-only"
HOSTILE = "<img src=x onerror=window.hit=1>"
expect.set_options(timeout=PATIENCE)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    home: Path = tmp_path_factory.mktemp("guarded")
    server = Server(home, token=TOKEN)
    server.start()
    yield server
    server.stop()


def log_in(page: Page) -> None:
    page.get_by_label("Token").fill(TOKEN)
    page.get_by_role("button", name="Log in").click()


def test_only_the_token_opens_the_pages(server: Server, open_page: Callable[..., Page]) -> None:
    page = open_page(f"{server.url}/system")
    expect(page).to_have_url(re.compile(r"/login\?next=/system"))
    assert page.request.get(f"{server.url}/api/v1/pipelines").status == 401
    page.get_by_label("Token").fill("not the token at all")
    page.get_by_role("button", name="Log in").click()
    expect(page.get_by_role("alert")).to_have_text("That is not the token.")
    assert page.request.get(f"{server.url}/api/v1/pipelines").status == 401

    log_in(page)
    expect(page).to_have_url(f"{server.url}/system")
    expect(settled(page).get_by_role("heading", name="Workers")).to_be_visible()
    assert TOKEN not in page.content()


@pytest.mark.parametrize(
    "target", ["//evil.example/", "https://evil.example/", "/\\evil.example", "javascript:alert(1)"]
)
def test_a_login_leads_to_no_other_site(server: Server, open_page: Callable[..., Page], target: str) -> None:
    page = open_page(f"{server.url}/login")
    page.goto(f"{server.url}/login?next={target}")
    log_in(page)
    expect(page).to_have_url(f"{server.url}/")


def test_a_session_that_is_over_leads_back_to_the_login(
    server: Server, open_page: Callable[..., Page]
) -> None:
    page = open_page(f"{server.url}/login")
    log_in(page)
    expect(page).to_have_url(f"{server.url}/")
    page.goto(f"{server.url}/?status=completed")  # a filter stays in sight where no run fits it
    settled(page)
    page.context.clear_cookies()
    page.get_by_label("State").select_option("failed")
    expect(page).to_have_url(re.compile(r"/login\?next="))


def test_a_reference_picture_goes_with_the_character(
    server: Server, open_page: Callable[..., Page], tmp_path: Path
) -> None:
    Image.new("RGB", (96, 64), "teal").save(tmp_path / "reference.png")
    page = open_page(f"{server.url}/login?next=/new")
    log_in(page)
    expect(page).to_have_url(f"{server.url}/new")
    settled(page).get_by_label("Name").fill("Ada")
    page.get_by_role("textbox", name="Description").fill("1girl, red hair")
    page.get_by_label("One picture").check()
    page.get_by_label("Reference picture").set_input_files(tmp_path / "reference.png")
    expect(page.locator("#reference-shown")).to_be_visible()
    page.get_by_role("button", name="Start").click()
    page.wait_for_url(re.compile("/pipelines/.+"))
    task = settled(page).request.get(f"{server.url}/api/v1/tasks/{first_task(page)}").json()
    with Image.open(task["payload"]["reference_image"]) as kept:
        assert kept.size == (96, 64)


def test_what_users_write_is_shown_and_not_run(server: Server, open_page: Callable[..., Page]) -> None:
    page = open_page(f"{server.url}/login?next=/new")
    log_in(page)
    expect(page).to_have_url(f"{server.url}/new")
    settled(page).get_by_label("Name").fill("Mara")
    page.get_by_role("textbox", name="Description").fill(f"1girl, {HOSTILE}")
    page.get_by_role("button", name="Start").click()
    page.wait_for_url(re.compile("/pipelines/.+"))
    address = page.url
    write_what_a_run_leaves(server.home, first_task(page))

    expect(page.locator("#description")).to_have_text(f"1girl, {HOSTILE}")
    page.reload()
    page.locator("#log-stage").select_option("generate")
    expect(page.locator("#log")).to_contain_text(f"{HOSTILE} in the log")
    page.locator("#gallery button").click()
    expect(page.locator("#picture-text")).to_contain_text(HOSTILE)
    unharmed(page)
    page.goto(f"{address}/dataset")
    expect(page.get_by_label("Caption of mara_001.png")).to_have_value(f"mara, {HOSTILE}")
    expect(page.locator("#tags")).to_contain_text(HOSTILE)
    page.get_by_label("Tag", exact=True).fill(f"{HOSTILE} tag")
    page.get_by_role("button", name="Add to all").click()
    expect(page.locator("#done")).to_contain_text(f"{HOSTILE} tag")
    unharmed(page)
    page.goto(server.url)
    expect(page.get_by_text(HOSTILE)).to_be_visible()
    unharmed(page)


def first_task(page: Page) -> int:
    """The number of the first stage's task of the run that the page shows."""
    run = page.request.get(page.url.replace("/pipelines/", "/api/v1/pipelines/")).json()
    return int(run["stages"][0]["task_id"])


def write_what_a_run_leaves(home: Path, task: int) -> None:
    """A picture, its caption and a log, as a run of a hostile user would leave them; no worker runs here."""
    images, logs = home / "datasets" / "Mara" / "images", home / "logs" / "tasks"
    for folder in (images, logs):
        folder.mkdir(parents=True)
    Image.new("RGB", (64, 64), "teal").save(images / "mara_001.png")
    (images / "mara_001.txt").write_text(f"mara, {HOSTILE}\n", encoding="utf-8")
    (logs / f"{task}.log").write_text(f"{HOSTILE} in the log\n", encoding="utf-8")


def unharmed(page: Page) -> None:
    assert page.evaluate("[window.hit ?? null, document.querySelectorAll('img[src=x]').length]") == [None, 0]
