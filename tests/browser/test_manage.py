"""Keeping house in the browser: a set changed by selection and undone, runs deleted and brought back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import Page, expect

from tests.browser.conftest import NARROW, PATIENCE, Server, settled
from tests.homes import ELARA, SMALL, Homes

expect.set_options(timeout=PATIENCE)
pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, homes: Homes) -> Iterator[Server]:
    server = Server(homes.copy(tmp_path_factory.mktemp("manage") / "home"))  # no worker: the files are there
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def run(server: Server) -> str:
    """The page of a run whose folder is the finished one."""
    asked = {"name": ELARA.name, "description": ELARA.description, "recipe": "mini", "settings": list(SMALL)}
    made = httpx.post(f"{server.url}/api/v1/pipelines", json=asked).json()
    httpx.post(f"{server.url}/api/v1/pipelines/{made['id']}/cancel")
    return f"{server.url}/pipelines/{made['id']}"


def captions(server: Server) -> dict[str, str]:
    images = server.home / "datasets" / "Elara" / "images"
    return {path.name: path.read_text(encoding="utf-8") for path in sorted(images.glob("*.txt"))}


def serious(page: Page) -> list[str]:
    found = Axe().run(page).response["violations"]
    return [fault["id"] for fault in found if fault["impact"] in ("serious", "critical")]


def test_a_bulk_edit_changes_what_is_shown_or_selected_and_nothing_else(
    server: Server, run: str, open_page: Callable[..., Page]
) -> None:
    before = captions(server)
    page = settled(open_page(f"{run}/dataset"))
    tag = next(word.strip() for word in before["elara_001.txt"].split(",")[1:])
    shown = [name for name, text in before.items() if tag in text]
    page.locator("#tags button").filter(has_text=tag).first.click()
    expect(page.locator("#set li")).to_have_count(len(shown))
    page.get_by_label("Tag", exact=True).fill("sunburst")
    page.get_by_role("button", name=f"Add to the {len(shown)} shown").click()
    expect(page.locator("#done")).to_contain_text("sunburst")
    assert [name for name, text in captions(server).items() if "sunburst" in text] == shown

    page.get_by_role("button", name="Show all").click()
    page.get_by_label("Select elara_002.png").check()
    page.get_by_label("Select elara_003.png").check()
    page.get_by_text("Find and replace").click()
    page.get_by_label("Find", exact=True).fill("best quality")
    page.get_by_label("Replace with").fill("superb")
    page.get_by_role("button", name="Replace in the 2 selected").click()
    expect(page.locator("#done")).to_contain_text("superb")
    changed = [name for name, text in captions(server).items() if "superb" in text]
    assert changed == ["elara_002.txt", "elara_003.txt"]
    page.get_by_role("button", name="Exclude the 2 selected").click()
    expect(page.locator("#out li")).to_have_count(2)
    assert serious(page) == []
    for _ in range(3):
        undo = page.get_by_role("button", name="Undo: ")
        words = undo.inner_text()
        undo.click()
        expect(page.locator("#undo")).not_to_have_text(words)
    expect(page.locator("#undo")).to_be_hidden()
    assert captions(server) == before
    expect(page.locator("#out-section")).to_be_hidden()


def test_a_set_is_worked_through_with_keys_alone(run: str, open_page: Callable[..., Page]) -> None:
    page = settled(open_page(f"{run}/dataset"))
    expect(page.locator("#set li")).not_to_have_count(0)
    count = page.locator("#set li").count()
    for key in ("j", "j", "x"):
        page.keyboard.press(key)
    expect(page.locator("#selected")).to_have_text("1 picture selected")
    expect(page.get_by_label("Select elara_002.png")).to_be_checked()
    page.keyboard.press("e")
    expect(page.locator("#out")).to_contain_text("elara_002.png")
    page.keyboard.press("u")
    expect(page.locator("#set li")).to_have_count(count)
    page.keyboard.press("/")
    expect(page.get_by_label("Words in the caption")).to_be_focused()
    page.keyboard.type("no caption says this")
    expect(page.locator("#none")).to_have_text("No picture fits.")


def test_a_run_is_deleted_after_a_question_and_brought_back(
    server: Server, run: str, open_page: Callable[..., Page]
) -> None:
    folder: Path = server.home / "datasets" / "Elara"
    page = settled(open_page(run))
    page.get_by_role("button", name="Delete").click()
    page.get_by_role("button", name="Go back").click()
    assert folder.is_dir()
    page.get_by_role("button", name="Delete").click()
    page.locator("dialog").get_by_role("button", name="Delete").click()
    page.wait_for_url(f"{server.url}/**")
    expect(page.locator("#done")).to_contain_text("The run Elara is in the bin.")
    assert not folder.exists()
    expect(page.locator("#runs li")).to_have_count(0)
    page.get_by_role("button", name="Undo").click()
    expect(page.locator("#runs li")).to_have_count(1)
    assert (folder / "images").is_dir()

    page.get_by_role("button", name="Delete Elara").click()
    page.locator("dialog").get_by_role("button", name="Delete").click()
    expect(page.locator("#runs li")).to_have_count(0)
    page.get_by_role("link", name="Bin").click()
    expect(page.locator("#entries li")).to_contain_text("kept for 30 more days")
    assert serious(settled(page)) == []
    page.get_by_role("button", name="Restore run Elara").click()
    expect(page.locator("#none")).to_be_visible()
    assert (folder / "images").is_dir()


def test_the_dashboard_works_below_a_path(
    tmp_path_factory: pytest.TempPathFactory, homes: Homes, open_page: Callable[..., Page]
) -> None:
    server = Server(homes.copy(tmp_path_factory.mktemp("below") / "home"), "--root-path", "/foundry")
    server.start()
    try:
        page = settled(open_page(f"{server.url}/foundry/"))
        page.get_by_role("link", name="New character").first.click()
        settled(page).get_by_label("Name", exact=True).fill(ELARA.name)
        page.get_by_label("Description", exact=True).fill(ELARA.description)
        expect(page.locator("#shots li")).to_have_count(40)
        page.get_by_role("button", name="Start").click()
        page.wait_for_url(f"{server.url}/foundry/pipelines/**")
        asked = {
            "name": ELARA.name,
            "description": ELARA.description,
            "recipe": "mini",
            "settings": list(SMALL),
        }
        made = httpx.post(f"{server.url}/api/v1/pipelines", json=asked).json()
        page.goto(f"{server.url}/foundry/pipelines/{made['id']}")
        expect(page.locator("#gallery img").first).to_be_visible()
        assert page.locator("#gallery img").first.evaluate(
            "(image) => image.decode().then(() => image.naturalWidth)"
        )
        page.goto(f"{server.url}/foundry/pipelines/nobody")
        expect(page.locator(".empty")).to_contain_text("There is no run")
        page.get_by_role("link", name="All runs", exact=True).click()
        expect(page.locator("#runs li")).to_have_count(2)
    finally:
        server.stop()


def test_pictures_are_selected_by_a_rectangle(run: str, open_page: Callable[..., Page]) -> None:
    page = settled(open_page(f"{run}/dataset"))
    page.locator("#set li").first.scroll_into_view_if_needed()
    first, second = (page.locator("#set li").nth(index).bounding_box() for index in (0, 1))
    assert first is not None
    assert second is not None
    gap = (first["x"] + first["width"] + second["x"]) / 2
    page.mouse.move(gap, first["y"] + 4)
    page.mouse.down()
    page.mouse.move(gap + 60, first["y"] + 60, steps=3)
    expect(page.locator(".lasso")).to_be_visible()
    page.mouse.up()
    expect(page.locator("#selected")).to_have_text("1 picture selected")
    expect(page.locator("#set li").nth(1)).to_have_class("tile selected")
    expect(page.locator(".lasso")).to_have_count(0)
    assert serious(page) == []


def test_a_dataset_is_deleted_and_brought_back(
    server: Server, run: str, open_page: Callable[..., Page]
) -> None:
    page = settled(open_page(f"{run}/dataset"))
    before = captions(server)
    page.get_by_role("button", name="Delete the dataset").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete the dataset").click()
    expect(page.locator("#done")).to_contain_text("is in the bin")
    expect(page.locator("#set li")).to_have_count(0)
    assert captions(server) == {}
    page.get_by_role("button", name="Undo", exact=True).click()
    expect(page.locator("#set li").first).to_be_visible()
    assert captions(server) == before


def test_a_picture_is_cropped_with_mouse_keys_and_numbers(
    server: Server, run: str, open_page: Callable[..., Page]
) -> None:
    images = server.home / "datasets" / "Elara" / "images"
    whole, before = (images / "elara_001.png").read_bytes(), captions(server)
    page = settled(open_page(f"{run}/dataset"))
    page.get_by_role("button", name="Crop elara_001.png").click()
    box = page.locator(".crop-box")
    expect(box).to_be_focused()
    stage = page.locator(".crop-stage").bounding_box()
    assert stage is not None
    page.mouse.move(stage["x"] + 1, stage["y"] + 1)
    page.mouse.down()
    page.mouse.move(stage["x"] + stage["width"] / 2, stage["y"] + stage["height"] / 4, steps=3)
    page.mouse.up()
    width, height = page.get_by_label("Width"), page.get_by_label("Height")
    assert (int(width.input_value()), int(height.input_value())) == (32, 16)
    page.get_by_label("Shape").select_option("1")
    assert width.input_value() == height.input_value()
    box.press("ArrowRight")
    assert page.get_by_label("Left", exact=True).input_value() == "1"
    box.press("Shift+ArrowDown")
    assert width.input_value() == height.input_value()
    page.get_by_label("Width").fill("40")
    page.get_by_label("Left", exact=True).fill("900")
    page.keyboard.press("Tab")
    assert page.get_by_label("Left", exact=True).input_value() == "24", "the part stays within the picture"
    assert serious(page) == []
    page.get_by_role("dialog").get_by_role("button", name="Crop").click()
    expect(page.locator("#done")).to_contain_text("elara_001.crop.png is in the place of elara_001.png")
    expect(page.locator("#out")).to_contain_text("elara_001.png")
    with Image.open(images / "elara_001.crop.png") as made:
        assert made.size == (40, 40)
    assert captions(server)["elara_001.crop.txt"] == before["elara_001.txt"]
    assert (images / "elara_001.png").read_bytes() == whole
    page.get_by_role("button", name="Undo: cropped elara_001.png").click()
    expect(page.get_by_label("Select elara_001.png")).to_be_visible()
    assert captions(server) == before


def test_a_picture_is_cropped_with_a_finger(server: Server, run: str, open_page: Callable[..., Page]) -> None:
    page = settled(open_page(f"{run}/dataset", viewport=NARROW, has_touch=True))
    page.get_by_role("button", name="Crop elara_002.png").tap()
    corner = page.locator(".crop-corner.right.bottom").bounding_box()
    stage = page.locator(".crop-stage").bounding_box()
    assert corner is not None
    assert stage is not None
    x, y = corner["x"] + corner["width"] / 2, corner["y"] + corner["height"] / 2
    finger = page.context.new_cdp_session(page)
    for kind, place in (
        ("touchStart", (x, y)),
        ("touchMove", (x - 9, y)),
        ("touchMove", (x - stage["width"] / 4, y)),
    ):
        points = [{"x": place[0], "y": place[1]}]
        finger.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
    finger.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    assert abs(int(page.get_by_label("Width").input_value()) - 35) <= 1, "51 of 64 pixels, less a quarter"
    page.get_by_role("dialog").get_by_role("button", name="Go back").click()
    expect(page.get_by_role("dialog")).to_have_count(0)
    assert not (server.home / "datasets" / "Elara" / "images" / "elara_002.crop.png").exists()
