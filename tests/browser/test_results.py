"""The results page: how good a LoRA is decides the colour, not that it was installed."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import httpx
import pytest
from playwright.sync_api import Page, expect

from lora_foundry.domain.evaluation import Evaluation, EvaluationPicture, ScoreRow
from lora_foundry.domain.publication import Publication
from lora_foundry.domain.shots import Shot
from lora_foundry.files.storage import write_model
from lora_foundry.settings import Settings
from tests.browser.conftest import NARROW, PATIENCE, Server, png, settled
from tests.contract.web.conftest import ELARA, paint_set

expect.set_options(timeout=PATIENCE)
pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("results"))  # no worker: what it would write is painted
    server.start()
    yield server
    server.stop()


@pytest.mark.parametrize(
    ("identity", "uncalled", "colour", "words"),
    [(0.9, 0.2, "good", "Good: identity 0.90"), (0.89, 0.85, "warn", "Weak: identity 0.89"),
     (0.3, 0.1, "bad", "Bad: identity 0.30")],
)  # fmt: skip
def test_the_verdict_decides_the_colour_of_an_installed_lora(
    server: Server, open_page: Callable[..., Page], identity: float, uncalled: float, colour: str, words: str
) -> None:
    made = httpx.post(f"{server.url}/api/v1/pipelines", json=ELARA | {"name": colour}).json()["id"]
    paths = paint_set(Settings(home=server.home), colour)
    write_model(paths.evaluation_result, Evaluation(
        character="Elara", trigger="elara", model="mini", before=ScoreRow(identity=0.2, adherence=0.9),
        after=ScoreRow(identity=identity, adherence=0.9), without_trigger=ScoreRow(identity=uncalled), strength=1.0,
        lora_sha256="", shots=1, held_out=1, fingerprint="", seconds=1.0,
    ))  # fmt: skip
    write_model(paths.publication, Publication(
        published=True, verdict="published", lora=server.home / "loras" / "elara.safetensors"
    ))  # fmt: skip
    page = settled(open_page(f"{server.url}/pipelines/{made}/results"))
    verdict = page.locator("#verdict")
    expect(verdict).to_contain_text(words)
    expect(verdict).to_contain_text("Published as elara.safetensors")
    expect(verdict).to_have_class(re.compile(rf"\b{colour}\b"))
    card = page.locator(".card", has_text="appears without the trigger")
    expect(card).to_contain_text(f"{uncalled:.2f}")


def test_on_a_phone_the_results_take_four_screens_and_the_rest_is_one_press_away(
    server: Server, open_page: Callable[..., Page]
) -> None:
    made = httpx.post(f"{server.url}/api/v1/pipelines", json=ELARA | {"name": "Long"}).json()["id"]
    paths = paint_set(Settings(home=server.home), "Long")
    shot = Shot("standing", "smiling", "front view", "natural lighting", "simple background")
    sides = {}
    for side in ("before", "after"):
        names = [f"{side}/{index:03d}.png" for index in range(20)]
        for name in names:
            file = paths.evaluation_pictures() / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(png(1))
        shown = tuple(
            EvaluationPicture(file=name, shot=shot, prompt="a", seed=seed) for seed, name in enumerate(names)
        )
        traits = {f"trait_{index}": 0.5 for index in range(20)}
        sides[side] = ScoreRow(identity=0.5, adherence=0.9, identity_by_trait=traits, pictures=shown)
    write_model(paths.evaluation_result, Evaluation(
        character="Long", trigger="long", model="mini", before=sides["before"], after=sides["after"],
        without_trigger=ScoreRow(), strength=1.0, lora_sha256="", shots=1, held_out=1, fingerprint="", seconds=1.0,
    ))  # fmt: skip
    page = settled(open_page(f"{server.url}/pipelines/{made}/results", viewport=NARROW))
    pairs = page.locator("#pairs > li")
    expect(pairs).to_have_count(4)
    assert page.evaluate("document.documentElement.scrollHeight / innerHeight") < 4
    page.get_by_role("button", name="Show all 20").click()
    expect(pairs).to_have_count(20)
    expect(pairs.nth(4).get_by_role("button").first).to_be_focused()
    expect(page.locator("#traits")).to_be_hidden()
    page.get_by_text("By trait and by what was asked for").click()
    expect(page.locator("#traits")).to_be_visible()
