"""A character from the form to the published LoRA and back again, watched in a browser while it happens. One run on
the real miniature model serves all of these tests; they stand in the order in which a person would come to them."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect
from safetensors import safe_open

from lora_foundry.pipeline import STAGE_NAMES
from lora_foundry.web.pages import pages
from tests.browser.conftest import NARROW, PATIENCE, STAGES, WIDE, Server, settled, write_picture
from tests.homes import SMALL

DESCRIPTION = "1girl, pink hair, twintails, green eyes, pale skin, blue dress, crown"
# For the pictures in the docs: a set, a loss and pairs that are worth looking at, in a few minutes.
SHOWN = ("generate.images=24", "generate.rounds=1", "train.regularisation=0", "train.steps=120",
         "train.checkpoint_every=40", "train.saves=3",
         "evaluate.prompts=4", "evaluate.seeds=1", "evaluate.strengths=0.8\n1.0", "evaluate.choice_prompts=2",
         "train.sample_prompts={trigger}, standing confidently, smiling warmly, full body shot, simple background")  # fmt: skip
expect.set_options(timeout=PATIENCE)
pytestmark = pytest.mark.timeout(1800)  # a machine may be busy; by itself all of this takes a minute or so


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    home = Path(tempfile.mkdtemp(prefix="lora-foundry-browser-"))
    server = Server(home, "--with-worker")
    server.start()
    yield server
    server.stop()
    shutil.rmtree(home, ignore_errors=True)


@pytest.fixture(scope="module")
def run_address(server: Server, browser: Browser, screenshots: Path | None) -> str:
    """The page of a run that was started with the form and watched until its LoRA was published."""
    page = browser.new_page(viewport=WIDE)
    page.set_default_timeout(PATIENCE)
    page.goto(f"{server.url}/new")
    settings = SHOWN if screenshots else SMALL
    images = int(settings[0].partition("=")[2])
    fill_form(page, settings, images)
    page.get_by_role("button", name="Start").click()
    page.wait_for_url(re.compile("/pipelines/.+"))
    address = page.url
    watch(page, images, screenshots)
    page.close()
    return address


def fill_form(page: Page, settings: Sequence[str], images: int) -> None:
    """The new character, with the small settings typed into the recipe's own fields."""
    settled(page)
    page.get_by_label("Name").fill("Elara")
    page.get_by_role("textbox", name="Description").fill(DESCRIPTION)
    expect(page.locator("#shots li")).to_have_count(40)
    page.locator("#advanced > summary").click()
    for setting in settings:
        path, _, value = setting.partition("=")
        page.get_by_label("Find a setting").fill(path)
        page.locator(f"#field-{path.replace('.', '-')}").fill(value)
    expect(page.locator("#shots li")).to_have_count(images)


# Which stage a look at the page finds at work depends on the machine: six small pictures may be drawn before the first of
# them is shown. So the page itself notes which it marks.
_NOTE_CURRENT_STAGES = """
window.current = new Set()
const note = () => {
  const step = document.querySelector("[aria-current=step]")
  if (step) window.current.add(step.dataset.key)
}
note()
new MutationObserver(note).observe(document.body, {subtree: true, childList: true, attributes: true})
"""


def watch(page: Page, images: int, screenshots: Path | None) -> None:
    """Sees the pictures come one after another, the loss drawn, the log grow, and each stage end."""
    page.evaluate("window.kept = true")
    page.evaluate(_NOTE_CURRENT_STAGES)
    gallery = page.locator("#gallery img")
    gallery.first.wait_for(timeout=STAGES)
    expect(gallery).to_have_count(images, timeout=STAGES)
    expect(page.locator("#steps .completed").first).to_be_visible(timeout=STAGES)
    expect(page.locator("#loss svg")).to_be_visible(timeout=STAGES)
    if screenshots is not None:
        expect(page.locator("#loss-now")).to_contain_text(re.compile(r"step ([5-9]\d|1\d\d)"), timeout=STAGES)
        write_picture(page, screenshots, "live-wide-light")
    expect(page.locator("#steps .completed")).to_have_count(6, timeout=STAGES)
    expect(page.locator("#state")).to_have_text("completed")
    assert page.evaluate("window.kept"), "the page was loaded again"
    current = page.evaluate("[...window.current]")
    assert {"generate", "curate"} & set(current), "the stage that drew was never marked as the one at work"
    assert current == [stage for stage in STAGE_NAMES if stage in current], (
        "marked in the order of the pipeline"
    )


def data_of(server: Server) -> Path:
    return server.home / "datasets" / "Elara"


def trained_on(server: Server) -> int:
    """How many pictures the installed LoRA was made from, by its own metadata."""
    with safe_open(server.home / "loras" / "elara_mini.safetensors", "np") as lora:
        return int(lora.metadata()["ss_num_train_images"])


def test_a_character_is_created_and_watched_to_its_published_lora(server: Server, run_address: str) -> None:
    assert (server.home / "loras" / "elara_mini.safetensors").is_file()
    metadata = json.loads((data_of(server) / "generation_metadata.json").read_text(encoding="utf-8"))
    assert metadata["description"] == DESCRIPTION
    assert trained_on(server) == len(list((data_of(server) / "images").glob("*.png"))) >= 6


PAGES = {page.name: page.address for page in pages()}


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("view", ["wide-light", "narrow-dark"])
def test_every_page_fits_its_screen_and_axe_finds_no_serious_fault(
    server: Server,
    run_address: str,
    open_page: Callable[..., Page],
    screenshots: Path | None,
    name: str,
    view: str,
) -> None:
    address = PAGES[name].format(pipeline=run_address.rpartition("/")[2])
    size, scheme = (WIDE, "light") if view == "wide-light" else (NARROW, "dark")
    page = settled(open_page(server.url + address, viewport=size, color_scheme=scheme))
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), (
        "it has to be scrolled sideways"
    )
    if screenshots is not None:
        if name == "system":
            expect(page.locator("#findings li").first).to_be_visible()
        if name == "new":
            expect(page.locator(".recipe .completed").first).to_be_visible()
        write_picture(page, screenshots, f"{name}-{view}")
    if name == "new":
        page.locator("#advanced > summary").click()
        for group in page.locator("#sections > details > summary").all():
            group.click()
    found = Axe().run(page).response["violations"]
    grave = [fault for fault in found if fault["impact"] in ("serious", "critical")]
    assert [(fault["id"], [node["html"] for node in fault["nodes"]]) for fault in grave] == []


def test_a_caption_that_is_edited_reaches_its_file_and_another_tab_cannot_undo_it_unseen(
    server: Server, run_address: str, open_page: Callable[..., Page]
) -> None:
    first, second = (settled(open_page(f"{run_address}/dataset")) for _ in range(2))
    name, file = "Caption of elara_001.png", data_of(server) / "images" / "elara_001.txt"
    for page in (first, second):  # a tab that reads only after the other has saved has nothing to undo
        expect(page.get_by_label(name)).not_to_have_value("")
    second.get_by_label(name).fill("elara, something else")  # before news of the other's text can reach it
    first.get_by_label(name).fill("elara, a caption of my own")
    first.get_by_role("button", name="Save").click()
    expect(first.locator("#done")).to_contain_text("elara_001.png")
    assert file.read_text(encoding="utf-8").strip() == "elara, a caption of my own"

    second.get_by_role("button", name="Save").click()
    expect(second.get_by_role("alert")).to_be_visible()
    assert file.read_text(encoding="utf-8").strip() == "elara, a caption of my own"
    assert second.get_by_label(name).input_value() == "elara, something else", "what was typed is lost"
    expect(second.get_by_role("alert")).to_contain_text("it now is: elara, a caption of my own (Save again")
    second.get_by_role("button", name="Save").click()
    expect(second.locator("#done")).to_contain_text("elara_001.png")
    assert file.read_text(encoding="utf-8").strip() == "elara, something else"

    first.get_by_label("Tag", exact=True).fill("sitting on a chair")
    first.get_by_role("button", name="Add to all").click()
    expect(first.locator("#tags")).to_contain_text("sitting on a chair")
    texts = [path.read_text(encoding="utf-8") for path in file.parent.glob("*.txt")]
    assert len(texts) >= 6
    assert all("sitting on a chair" in text for text in texts)


def test_a_server_that_is_restarted_under_an_open_page_is_found_again(
    server: Server, run_address: str, open_page: Callable[..., Page]
) -> None:
    page = settled(open_page(f"{run_address}/dataset"))
    page.evaluate("window.kept = true")
    server.stop()
    expect(page.locator("#connection")).to_contain_text("Connection lost")
    (data_of(server) / "images" / "elara_003.txt").write_text("elara, written meanwhile\n", encoding="utf-8")
    server.start()
    expect(page.locator("#connection")).to_have_text("")
    expect(page.get_by_label("Caption of elara_003.png")).to_have_value("elara, written meanwhile")
    assert page.evaluate("window.kept"), "the page was loaded again"


def test_a_keyboard_is_enough(run_address: str, open_page: Callable[..., Page]) -> None:
    page = settled(open_page(run_address))
    page.keyboard.press("Tab")
    expect(page.get_by_text("Skip to the content")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("main")).to_be_focused()
    page.locator("#gallery button").first.focus()
    page.keyboard.press("Enter")
    dialog = page.locator("#picture")
    expect(dialog).to_be_visible()
    title = page.locator("#picture-title").inner_text()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#picture-title")).not_to_have_text(title)
    page.keyboard.press("Escape")
    expect(dialog).not_to_be_visible()
    expect(page.locator("#gallery button").first).to_be_focused()


def test_an_excluded_picture_is_not_trained_on_and_a_cancelled_run_goes_on(
    server: Server, run_address: str, open_page: Callable[..., Page]
) -> None:
    before = trained_on(server)
    listed = settled(open_page(server.url))
    page = settled(open_page(f"{run_address}/dataset"))
    page.get_by_role("button", name="Exclude elara_004.png").click()
    expect(page.locator("#out")).to_contain_text("elara_004.png")
    expect(page.locator("#set li")).to_have_count(before - 1)
    page.get_by_role("button", name="Exclude elara_005.png").click()
    page.get_by_role("button", name="Restore elara_005.png").click()
    expect(page.locator("#set li")).to_have_count(before - 1)

    page.get_by_role("button", name="Train again with this set").click()
    page.get_by_label("Changed settings, one a line").fill("train.steps = 4000\ntrain.saves = 1")
    page.locator("#retry").get_by_role("button", name="Run again").click()
    page.wait_for_url(run_address)
    expect(page.locator("#state")).to_have_text("running")
    sample_now(page)
    page.get_by_role("button", name="Cancel").click()
    page.get_by_role("button", name="Cancel the run").click()
    expect(page.locator("#state")).to_have_text("cancelled")
    expect(listed.locator("#runs .chip")).to_have_text("cancelled")  # the other tab saw it too

    listed.get_by_role("button", name="Run again Elara").click()
    listed.get_by_label("Changed settings, one a line").fill("train.steps = 14\ntrain.saves = 2")
    listed.locator("#retry").get_by_role("button", name="Run again").click()
    expect(page.locator("#steps .completed")).to_have_count(6, timeout=STAGES)
    expect(page.locator("#state")).to_have_text("completed")
    expect(listed.locator("#runs .chip")).to_have_text("completed")
    assert trained_on(server) == before - 1
    assert json.loads((data_of(server) / "training" / "result.json").read_text())["steps"] == 14


def sample_now(page: Page) -> None:
    """Has the training that runs, which draws none by itself for thousands of steps yet, draw what it has learned."""
    button = page.get_by_role("button", name="Sample now")
    expect(button).to_be_enabled(timeout=STAGES)
    button.click()
    expect(page.locator("#samples-about")).to_contain_text(re.compile("after the next steps|^$"))
    expect(page.locator("#samples li")).to_have_count(1, timeout=STAGES)  # none of the training before
    page.locator("#samples li button").first.click()
    expect(page.locator("#picture-title")).to_contain_text("Step")
    page.get_by_role("button", name="Close", exact=True).last.click()
