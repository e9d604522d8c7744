"""Versions of a character and other LoRAs side by side, through the API."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import requests

from lora_foundry.domain.character import Character
from lora_foundry.domain.run import Run
from lora_foundry.domain.trial import Rival, Trial, called
from lora_foundry.files.storage import read_model, write_model
from lora_foundry.recipe_files import load_recipe
from lora_foundry.settings import Settings
from lora_foundry.web.trials import new_trial
from tests.contract.web.conftest import serving
from tests.homes import ELARA, SMALL

pytestmark = pytest.mark.usefixtures("forked_children")

PATIENCE = 120


def test_versions_are_compared_and_drawn_side_by_side(finished: Path) -> None:
    shutil.copytree(finished / "datasets" / "Elara", finished / "datasets" / "Nia")
    file = finished / "datasets" / "Nia" / "run.json"
    made = read_model(file, Run)
    assert made is not None
    nia = Character(name="Nia", description=ELARA.description)
    write_model(file, made.model_copy(update={"character": nia, "output_name": "nia_mini"}))
    with serving(Settings(home=finished)) as address, requests.Session() as session:
        base = f"{address}/api/v1/pipelines"
        asked: dict[str, Any] = {"recipe": "mini", "settings": list(SMALL), "description": ELARA.description}
        first, second, other = (
            session.post(base, json=asked | changes).json()["id"]
            for changes in (
                {"name": "Elara"},
                {"name": "Elara", "settings": [*SMALL, "train.alpha=2"]},
                {"name": "Nia"},
            )
        )
        found = session.get(f"{base}/{first}/versions", params={"also": other}).json()
        assert [each["id"] for each in found["versions"]] == [second, first, other]
        changed = found["versions"][0]["changes"]
        assert "train.alpha = 2" in changed
        measured = [each["scores"] is not None for each in found["versions"]]
        assert measured == [False, True, True]
        assert [each["has_lora"] for each in found["versions"]] == measured
        assert found["others"] == []
        assert found["same"]
        assert [row["pictures"][0] for row in found["same"]] == [None] * len(found["same"])
        for url in (found["same"][0]["without"], *found["same"][0]["pictures"][1:]):
            assert session.get(address + url).headers["content-type"] == "image/png"
        alone = session.get(f"{base}/{first}/versions").json()
        assert [each["id"] for each in alone["versions"]] == [second, first]

        begun = session.post(
            f"{base}/{first}/trials", json={"prompt": "elara, smile", "seeds": [7], "against": [other]}
        )
        assert begun.status_code == 202, begun.text
        end = time.monotonic() + PATIENCE
        while (trial := session.get(f"{base}/{first}/trials").json()[0])["state"] == "running":
            assert time.monotonic() < end
            time.sleep(0.2)
        assert trial["error"] == ""
        assert [each["name"] for each in trial["rivals"]] == ["Nia, version 1"]
        (pair,) = trial["pairs"]
        assert len(pair["others"]) == 1
        assert session.get(address + pair["others"][0]).headers["content-type"] == "image/png"


def test_a_rival_is_called_by_its_own_word() -> None:
    rival = Rival(pipeline="x", name="Nia", trigger="nia", strength=1.0)
    trial: Trial = new_trial("Elara, elaras hat, smile", "", 1.0, (1,), (rival,), "elara")
    recipe = load_recipe("mini")
    assert trial.requests(recipe)[0].prompt == "Elara, elaras hat, smile"
    assert trial.requests(recipe, rival)[0].prompt == "nia, elaras hat, smile"


def test_of_several_characters_the_one_whose_word_stands_in_the_prompt_is_called() -> None:
    triggers = ("elara", "kai")
    assert called("Kai, standing", triggers) == "kai"
    assert called("kairo and elara", triggers) == "elara"
    assert called("a street", triggers) == "elara"
