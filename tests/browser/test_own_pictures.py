"""My pictures, as a person brings them: dropped on the page of a new character, sixty at once, with one that is no picture."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import NARROW, PATIENCE, STAGES, WIDE, Server, png, settled

expect.set_options(timeout=PATIENCE)
pytestmark = pytest.mark.timeout(600)
COUNT = 60


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(
        tmp_path_factory.mktemp("own")
    )  # no worker: what is looked at is how pictures come to a set
    server.start()
    yield server
    server.stop()


def test_sixty_pictures_are_dropped_and_become_a_set(
    server: Server, open_page: Callable[..., Page], tmp_path: Path
) -> None:
    page = open_page(f"{server.url}/new", viewport=WIDE)
    settled(page)
    page.get_by_label("My pictures").check()
    expect(page.get_by_role("heading", name="Your pictures")).to_be_visible()
    expect(page.locator("#plan-panel")).to_be_hidden()
    page.get_by_label("Name").fill("Mira")
    page.get_by_role("button", name="Start").click()
    expect(page.get_by_role("alert")).to_contain_text("Add your pictures first")

    drop(page, [(f"{index:02d}.png", png(index)) for index in range(COUNT)] + [("photo.cr2", b"layers")])
    about = page.locator("#own-about")
    expect(about).to_contain_text(f"{COUNT} pictures")
    page.get_by_text("1 file cannot be used").click()
    expect(page.locator("#own-left li")).to_contain_text("photo.cr2")
    page.screenshot(path=tmp_path / "own.png", full_page=True)

    page.get_by_role("button", name="Start").click()
    page.wait_for_url(re.compile("/pipelines/.+"))
    images = server.home / "datasets" / "Mira" / "images"
    assert len(list(images.glob("*.png"))) == COUNT
    assert (images / "07.png").read_bytes() == png(7)
    assert not list((server.home / "uploads").iterdir())


def drop(page: Page, files: list[tuple[str, bytes]]) -> None:
    """Drops files on the panel as a file manager would."""
    transfer = page.evaluate_handle(
        """(files) => {
            const transfer = new DataTransfer();
            for (const [name, bytes] of files) transfer.items.add(new File([new Uint8Array(bytes)], name));
            return transfer;
        }""",
        [[name, list(data)] for name, data in files],
    )
    page.dispatch_event("#own", "drop", {"dataTransfer": transfer})


def test_pictures_of_one_name_from_two_folders_both_come(
    server: Server, open_page: Callable[..., Page]
) -> None:
    page = settled(open_page(f"{server.url}/new", viewport=WIDE))
    page.get_by_label("My pictures").check()
    page.get_by_label("Name").fill("Nyx")
    about = page.locator("#own-about")
    drop(page, [("1.png", png(1)), ("1.txt", b"nyx, from the front")])
    expect(about).to_contain_text("1 picture")
    drop(page, [("1.png", png(2) + b" "), ("1.txt", b"nyx, from behind")])
    expect(about).to_contain_text("2 pictures")
    page.get_by_role("button", name="Start").click()
    page.wait_for_url(re.compile("/pipelines/.+"))
    images = server.home / "datasets" / "Nyx" / "images"
    found = {path.read_bytes(): path.with_suffix(".txt").read_text() for path in images.rglob("*.png")}
    assert found == {png(1): "nyx, from the front", png(2) + b" ": "nyx, from behind"}


def test_pictures_on_their_way_outlive_a_restart_of_the_server(
    server: Server, open_page: Callable[..., Page]
) -> None:
    """On a slow line the server is stopped in the middle: it takes in the part that is on its way, and the next one waits
    until it is there again."""
    light, heavy = (
        range(40),
        range(40, 100),
    )  # a part, and one and a half that a slow line carries for a minute
    page = settled(open_page(f"{server.url}/new", viewport=NARROW))
    page.get_by_label("My pictures").check()
    page.locator("#character").fill("Lux")  # a Nyx waits already
    line = page.context.new_cdp_session(page)
    fast = {"offline": False, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
    line.send("Network.emulateNetworkConditions", fast | {"uploadThroughput": 40_000})
    files = [(index, png(index, 16)) for index in light] + [(index, png(index)) for index in heavy]
    drop(page, [(f"{index:02d}.png", data) for index, data in files])
    about = page.locator("#own-about")
    expect(about).to_contain_text("Sending 41 to 80 of 100")
    server.stop(lambda: line.send("Network.emulateNetworkConditions", fast))
    expect(about).to_contain_text("have arrived")
    server.start()
    page.get_by_role("button", name="Start").click()
    page.wait_for_url(re.compile("/pipelines/.+"), timeout=STAGES)
    images = server.home / "datasets" / "Lux" / "images"
    assert len(list(images.glob("*.png"))) == len(files)
