"""Choosing on the page of a new character: a recipe, a base, settings that are found by words, and one's own recipe."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator

import httpx
import pytest
from playwright.sync_api import Locator, Page, Route, expect

from lora_foundry import mini
from tests.browser.conftest import NARROW, PATIENCE, Server, png, settled

expect.set_options(timeout=PATIENCE)
pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("new"))
    shutil.copytree(mini.MODEL_DIR, server.home / "models" / "tiny")
    server.start()
    yield server
    server.stop()


def card_of(page: Page, recipe: str) -> Locator:
    return page.locator(".recipe").filter(has=page.locator("b", has_text=re.compile(f"^{recipe}$")))


def test_recipes_are_cards_that_say_what_is_here(server: Server, open_page: Callable[..., Page]) -> None:
    page = settled(open_page(f"{server.url}/new", viewport=NARROW))
    expect(card_of(page, "mini").locator(".state")).to_have_text("ready")
    expect(page.locator("#needs")).to_be_hidden()
    card_of(page, "sdxl").get_by_role("radio").check()
    expect(card_of(page, "sdxl").locator(".state")).to_have_text("to download")
    expect(page.locator("#needs-list")).to_contain_text("licence: Fair AI Public License")
    expect(page.get_by_role("button", name="Get it")).to_be_visible()
    expect(page.locator("#plan-about")).to_contain_text("when the recipe has its base model")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_a_recipe_that_is_chosen_before_the_list_is_ready_says_what_it_needs(
    server: Server, open_page: Callable[..., Page]
) -> None:
    """On a slow machine it takes seconds until it is known of every recipe what is here."""
    held: list[Route] = []

    def hold(route: Route) -> None:
        held.append(route)

    page = settled(open_page(f"{server.url}/settings"))
    page.route("**/api/v1/readiness", hold)
    settled(page).goto(f"{server.url}/new")
    card = card_of(page, "sdxl")
    card.get_by_role("radio").check()
    expect(page.locator("#needs-list")).to_contain_text("licence: Fair AI Public License")
    expect(page.locator("#plan-about")).to_contain_text("when the recipe has its base model")
    expect(card.locator(".state")).to_have_text("…")
    held[0].continue_()
    expect(card.locator(".state")).to_have_text("to download")
    expect(page.get_by_role("button", name="Get it")).to_be_visible()


def test_start_waits_for_what_was_chosen(server: Server, open_page: Callable[..., Page]) -> None:
    """On a slow machine a person is faster than the page, which still asks for the suggested base or another recipe."""
    held: list[Route] = []

    def hold(route: Route) -> None:
        held.append(route)

    def let_go() -> None:
        while not held:
            page.wait_for_timeout(20)
        held.pop().continue_()

    page = open_page(f"{server.url}/settings")
    page.route("**/api/v1/bases", hold)
    settled(page).goto(f"{server.url}/new")
    settled(page).locator("#character").fill("Fast")
    page.get_by_label("Description", exact=True).fill("1girl, red hair")
    page.get_by_role("button", name="Start").click()
    expect(page.get_by_role("button", name="Start")).to_be_disabled()
    let_go()
    page.wait_for_url(re.compile("/pipelines/.+"))

    page.unroute("**/api/v1/bases")
    page.route("**/api/v1/recipes/mini", hold)
    settled(page).goto(f"{server.url}/new")
    settled(page).locator("#character").fill("Faster")
    page.get_by_label("Description", exact=True).fill("1girl, red hair")
    card_of(page, "mini").get_by_role("radio").check()
    page.get_by_role("button", name="Start").click()
    expect(page.get_by_role("button", name="Start")).to_be_disabled()
    let_go()
    page.wait_for_url(re.compile("/pipelines/.+"))
    made = httpx.get(f"{server.url}/api/v1{page.url.removeprefix(server.url)}").json()
    assert made["recipe"] == "mini"


def test_what_was_entered_is_kept_when_another_recipe_is_chosen(
    server: Server, open_page: Callable[..., Page]
) -> None:
    """Though Start is pressed while the page still asks for the recipe."""
    held: list[Route] = []

    def hold(route: Route) -> None:
        held.append(route)

    page = settled(open_page(f"{server.url}/new?recipe=mini"))
    page.locator("#character").fill("Kept")
    page.get_by_label("Description", exact=True).fill("1girl, red hair")
    page.get_by_label("Images", exact=True).fill("6")
    page.locator("#field-train-steps").fill("8")
    page.route("**/api/v1/recipes/mini", hold)
    card_of(page, "mini-style").get_by_role("radio").check()
    card_of(page, "mini").get_by_role("radio").check()
    with page.expect_request(lambda each: each.method == "POST" and each.url.endswith("/pipelines")) as sent:
        page.get_by_role("button", name="Start").click()
        expect(page.get_by_role("button", name="Start")).to_be_disabled()
        while not held:
            page.wait_for_timeout(20)
        held.pop().continue_()
    body = sent.value.post_data_json
    assert (body["recipe"], body["settings"]) == ("mini", ["generate.images=6", "train.steps=8"])
    page.wait_for_url(re.compile("/pipelines/.+"))


def test_another_recipe_says_which_of_the_entered_settings_it_lacks(
    server: Server, open_page: Callable[..., Page]
) -> None:
    """It shows the others as changed, unless they are its own; a base that was only suggested is not kept."""

    def without_rank(route: Route) -> None:
        recipe = route.fetch().json()
        for section in recipe["sections"]:
            section["fields"] = [field for field in section["fields"] if field["path"] != "train.rank"]
        route.fulfill(json=recipe)

    page = open_page(f"{server.url}/settings")
    page.route(
        "**/api/v1/suggestion",
        lambda route: route.fulfill(json={"recipe": "mini", "base": "tiny", "why": ""}),
    )
    page.route("**/api/v1/recipes/mini-style", without_rank)
    page.goto(f"{server.url}/new")
    base, changes = page.get_by_label("Base model", exact=True), page.locator("#changes")
    expect(base).to_have_value("tiny")
    page.get_by_label("Images", exact=True).fill("some")
    page.get_by_label("Rank", exact=True).fill("8")
    page.locator("#field-train-steps").fill("2.6e2")
    expect(changes).to_have_text("4 values of the recipe changed.")
    card_of(page, "mini-style").get_by_role("radio").check()
    expect(page.locator("#left-out")).to_have_text("train.rank is no setting of mini-style and was left out.")
    expect(page.get_by_label("Images", exact=True)).to_have_value("some")
    expect(changes).to_have_text("1 value of the recipe changed.")
    expect(base).not_to_have_value("tiny")

    card_of(page, "mini").get_by_role("radio").check()
    expect(page.locator("#left-out")).to_be_empty()
    expect(page.get_by_label("Rank", exact=True)).to_have_value("8")
    expect(changes).to_have_text("3 values of the recipe changed.")
    page.get_by_role("button", name="Set Rank back").click()
    base.select_option("tiny")
    card_of(page, "mini-style").get_by_role("radio").check()
    expect(changes).to_have_text("2 values of the recipe changed.")
    expect(base).to_have_value("tiny")
    expect(page.locator("#left-out")).to_be_empty()


def test_one_picture_needs_no_description(server: Server, open_page: Callable[..., Page]) -> None:
    page = settled(open_page(f"{server.url}/new", viewport=NARROW))
    page.get_by_label("One picture").check()
    page.locator("#character").fill("Sora")
    page.get_by_label("Reference picture").set_input_files(
        {"name": "sora.png", "mimeType": "image/png", "buffer": png(1)}
    )
    page.get_by_role("button", name="Start").click()
    page.wait_for_url(re.compile("/pipelines/.+"))
    expect(page.locator("#name")).to_have_text("Sora")


def test_settings_are_found_changed_put_back_and_saved(
    server: Server, open_page: Callable[..., Page]
) -> None:
    page = settled(open_page(f"{server.url}/new"))
    expect(page.locator("#basic .field")).to_have_count(8)
    page.get_by_label("Base model", exact=True).select_option("tiny")
    page.get_by_label("Rank", exact=True).fill("8")
    expect(page.locator("#changes")).to_have_text("2 values of the recipe changed.")
    page.locator("#advanced > summary").click()
    find = page.get_by_label("Find a setting")
    find.fill("impossible")
    rows = page.locator("#field-shots-impossible")
    expect(rows).to_be_visible()
    expect(page.locator("#field-train-alpha")).to_be_hidden()
    rows.fill("running: front view, side view\njumping: close-up portrait")
    find.fill("repeats single")
    page.locator("#field-train-image_repeats").fill("elara_001.png: 3")
    find.fill("min sharpness")
    page.locator("#field-curate-min_sharpness").fill("7")
    page.get_by_role("button", name="Set Min sharpness back").click()
    find.fill("nothing has this")
    expect(page.locator("#found-none")).to_be_visible()
    expect(page.locator("#changes")).to_have_text("4 values of the recipe changed.")

    page.get_by_label("Save the changes as your own recipe").fill("mine")
    page.get_by_role("button", name="Save", exact=True).click()
    expect(page.locator("#kept")).to_contain_text("Saved as mine")
    expect(
        page.locator(".recipe").filter(has_text="with changes of mine").get_by_role("radio")
    ).to_be_checked()
    text = (server.home / "recipes" / "mine.toml").read_text(encoding="utf-8")
    assert (
        'impossible = [["running", ["front view", "side view"]], ["jumping", ["close-up portrait"]]]' in text
    )
    assert 'image_repeats = {"elara_001.png" = 3}' in text

    page.get_by_label("Name", exact=True).fill("Mira")
    page.get_by_label("Description", exact=True).fill("1girl, red hair")
    page.get_by_role("button", name="Start").click()
    page.wait_for_url(re.compile("/pipelines/.+"))
    run = httpx.get(f"{server.url}/api/v1/pipelines/{page.url.rpartition('/')[2]}").json()
    assert run["recipe"] == "mine"


def test_what_is_no_value_is_said_by_the_name_of_its_field(
    server: Server, open_page: Callable[..., Page]
) -> None:
    page = settled(open_page(f"{server.url}/new"))
    page.get_by_label("Name", exact=True).fill("Mira")
    page.get_by_label("Rank", exact=True).fill("many")
    page.get_by_role("button", name="Start").click()
    expect(page.get_by_role("alert")).to_have_text('Rank: "many" is no number.')


def test_the_back_button_brings_the_way_to_begin_that_was_chosen(
    server: Server, open_page: Callable[..., Page]
) -> None:
    page = settled(open_page(f"{server.url}/new"))
    page.get_by_label("My pictures").check()
    page.get_by_role("link", name="Settings", exact=True).click()
    page.wait_for_url(re.compile("/settings"))
    settled(page)
    page.go_back()
    expect(page.get_by_label("My pictures")).to_be_checked()
    expect(page.locator("#own")).to_be_visible()
    expect(page.locator("#looks-field")).to_be_hidden()


def test_several_characters_become_one_run_and_each_has_its_pictures(
    server: Server, open_page: Callable[..., Page]
) -> None:
    page = settled(open_page(f"{server.url}/new", viewport=NARROW))
    page.get_by_label("Several characters").check()
    page.locator("#character").fill("Trio")
    page.get_by_role("button", name="Start").click()
    expect(page.get_by_role("alert")).to_have_text("Give character 1 a name first.")
    one, other = page.get_by_role("group", name="Character 1"), page.get_by_role("group", name="Character 2")
    one.get_by_label("Name").fill("Elara")
    other.get_by_label("Name").fill("Kai")
    page.get_by_role("button", name="Start").click()
    expect(page.get_by_role("alert")).to_have_text("Elara: Describe this character first.")
    one.get_by_label("Description").fill("1girl, brown hair, red dress")
    other.get_by_label("Made from").select_option("one picture")
    other.get_by_label("Picture", exact=True).set_input_files(
        {"name": "kai.png", "mimeType": "image/png", "buffer": png(1)}
    )
    page.get_by_role("button", name="Add a character").click()
    third = page.get_by_role("group", name="Character 3")
    third.get_by_label("Name").fill("Zo")
    third.get_by_label("Made from").select_option("my pictures")
    third.get_by_label("Pictures").set_input_files(
        [{"name": f"{index}.png", "mimeType": "image/png", "buffer": png(index)} for index in range(3)]
    )
    expect(third.get_by_role("status")).to_contain_text("3 pictures")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.get_by_role("button", name="Start").click()
    page.wait_for_url(re.compile("/pipelines/.+"))
    expect(page.locator("#description")).to_have_text("Elara, Kai, Zo")
    expect(page.locator("#gallery li")).to_have_count(3)

    page.get_by_role("link", name="Dataset").click()
    whose = page.get_by_role("navigation", name="Characters of this LoRA")
    expect(whose.get_by_role("link", name="Elara")).to_have_attribute("aria-current", "page")
    expect(page.locator("#none")).to_be_visible()
    whose.get_by_role("link", name="Zo").click()
    expect(page.locator("#set .tile")).to_have_count(3)
    page.get_by_label("Caption of 0.png").fill("zo, smiling")
    page.get_by_role("button", name="Save", exact=True).click()
    expect(page.locator("#done")).to_contain_text("is saved")
    zo = server.home / "datasets" / "Trio" / "members" / "Zo" / "images"
    assert (zo / "0.txt").read_text(encoding="utf-8") == "zo, smiling\n"
    page.get_by_role("button", name="Exclude 1.png").click()
    expect(page.locator("#set .tile")).to_have_count(2)
    page.goto(page.url.replace("=Zo", "=Nobody"))
    expect(whose.get_by_role("link", name="Elara")).to_have_attribute("aria-current", "page")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
