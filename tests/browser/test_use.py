"""Using a finished LoRA in the browser, and what a person is told when a run waits or has failed."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import NARROW, PATIENCE, STAGES, Server, settled, write_picture
from tests.contract.test_store import execute
from tests.homes import ELARA, SMALL, Homes

expect.set_options(timeout=PATIENCE)
pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, homes: Homes) -> Iterator[Server]:
    server = Server(
        homes.copy(tmp_path_factory.mktemp("use") / "home")
    )  # no worker: the run's files are there
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def run(server: Server) -> str:
    asked = {"name": ELARA.name, "description": ELARA.description, "recipe": "mini", "settings": list(SMALL)}
    made = httpx.post(f"{server.url}/api/v1/pipelines", json=asked).json()
    return f"{server.url}/pipelines/{made['id']}"


def test_a_prompt_is_tried_and_its_pictures_are_shown(
    run: str, open_page: Callable[..., Page], screenshots: Path | None
) -> None:
    page = settled(open_page(f"{run}/use"))
    expect(page.locator("#facts")).to_contain_text("elara")
    expect(page.locator("#a1111")).to_have_value(re.compile(r"^<lora:.+:[\d.]+>$"))
    page.get_by_label("Prompt", exact=True).fill("elara, standing, smile <b>")
    page.get_by_role("button", name="Draw").click()
    expect(page.locator("#drawing")).to_contain_text("Being drawn")
    expect(page.get_by_role("button", name="Draw")).to_be_disabled()
    expect(page.locator("#trials .pair img")).to_have_count(4, timeout=STAGES)
    expect(page.locator("#trials h3")).to_have_text("elara, standing, smile <b>")
    expect(page.get_by_role("button", name="Draw")).to_be_enabled()
    page.locator("#trials .pair button").first.click()
    expect(page.locator("#picture-title")).to_have_text("without the LoRA")
    page.get_by_role("button", name="Close").click()
    page.get_by_label("Prompt", exact=True).fill("something else")
    page.get_by_role("button", name="Put it back into the form").click()
    expect(page.get_by_label("Prompt", exact=True)).to_have_value("elara, standing, smile <b>")
    if screenshots is not None:
        write_picture(page, screenshots, "use-wide-light")
        narrow = settled(open_page(f"{run}/use", viewport=NARROW, color_scheme="dark"))
        expect(narrow.locator("#trials .pair img")).to_have_count(4)
        write_picture(narrow, screenshots, "use-narrow-dark")


def test_both_files_are_downloaded(run: str, open_page: Callable[..., Page]) -> None:
    page = settled(open_page(f"{run}/use"))
    for link, ending in (("Download the LoRA", ".safetensors"), ("Download the training set", "_set.zip")):
        with page.expect_download() as download:
            page.get_by_role("link", name=link).click()
        assert download.value.suggested_filename.endswith(ending)
        assert Path(download.value.path()).stat().st_size > 1000


def test_a_run_that_waits_for_a_worker_says_how_to_get_one(run: str, open_page: Callable[..., Page]) -> None:
    page = settled(open_page(run))
    expect(page.locator("#doing")).to_contain_text("No worker is running")
    expect(page.locator("#doing")).to_contain_text("lora-foundry worker")
    expect(page.locator("#failure")).to_be_hidden()


def test_a_failed_run_says_why_and_is_tried_again_with_one_click(
    server: Server, run: str, open_page: Callable[..., Page], screenshots: Path | None
) -> None:
    row = httpx.get(f"{server.url}/api/v1/pipelines/{run.rpartition('/')[2]}").json()["stages"][3]["task_id"]
    why = "The base model is not there any more; put it back, or run `lora-foundry setup mini`."
    execute(
        f"sqlite:///{server.home / 'tasks.db'}",
        f"UPDATE echo_tasks SET status = 'failed', error = '{why}' WHERE id = {row}",
    )
    page = settled(open_page(run))
    expect(page.locator("#failure-title")).to_have_text("It stopped in train")
    expect(page.locator("#failure-reason")).to_have_text(why.replace("`", ""))
    if screenshots is not None:
        write_picture(page, screenshots, "failed-wide-light")
    page.get_by_role("button", name="Try again", exact=True).click()
    expect(page.locator("#failure")).to_be_hidden()
    expect(page.locator("#doing")).to_contain_text("No worker is running")
