"""The results page: how good a LoRA is decides the colour, not that it was installed."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import httpx
import pytest
from playwright.sync_api import Page, expect

from lora_foundry.domain.evaluation import Evaluation, ScoreRow
from lora_foundry.domain.publication import Publication
from lora_foundry.files.storage import write_model
from lora_foundry.settings import Settings
from tests.browser.conftest import PATIENCE, Server, settled
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
