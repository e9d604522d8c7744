"""Using a finished LoRA through the API: what one needs elsewhere, prompts tried here, the set as a file."""

from __future__ import annotations

import asyncio
import io
import json
import time
import zipfile
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import requests
from PIL import Image

from lora_foundry.domain.trial import Trial
from lora_foundry.files.paths import RunPaths
from lora_foundry.files.storage import read_model, write_model
from lora_foundry.settings import Settings
from lora_foundry.web.trials import KEPT, Trials, listed, new_trial
from tests.contract.web.conftest import serving
from tests.homes import ELARA, SMALL

pytestmark = pytest.mark.usefixtures("forked_children")

PATIENCE = 120


@pytest.fixture
def run(finished: Path) -> Any:
    """The address of a run whose files are those of a finished one, on a real server; the home has moved since."""
    published = paths_of(finished).publication
    lora = finished / "loras" / Path(json.loads(published.read_text())["lora"]).name
    published.write_text(json.dumps(json.loads(published.read_text()) | {"lora": str(lora)}))
    with serving(Settings(home=finished)) as address, requests.Session() as session:
        asked = {
            "name": ELARA.name,
            "description": ELARA.description,
            "recipe": "mini",
            "settings": list(SMALL),
        }
        made = session.post(f"{address}/api/v1/pipelines", json=asked).json()
        yield address, f"{address}/api/v1/pipelines/{made['id']}", session


def paths_of(home: Path) -> RunPaths:
    return RunPaths(home / "datasets" / "Elara", "elara")


def ended(session: requests.Session, trials: str) -> list[dict[str, Any]]:
    end = time.monotonic() + PATIENCE
    while True:
        found: list[dict[str, Any]] = session.get(trials, timeout=20).json()
        if all(each["state"] != "running" for each in found):
            return found
        assert time.monotonic() < end, found
        time.sleep(0.2)


def test_all_that_is_needed_elsewhere_is_said(run: Any) -> None:
    address, where, session = run
    said = session.get(f"{where}/use", timeout=20).json()
    assert said["trigger"] == "elara"
    assert said["prompt"].startswith("elara, ")
    assert said["a1111"] == f"<lora:{said['file'].removesuffix('.safetensors')}:{said['strength']:g}>"
    assert (Path(said["folder"]) / said["file"]).is_file()
    compile(said["diffusers"], "use", "exec")
    lora = session.get(address + said["lora_url"], timeout=20)
    assert lora.content == (Path(said["folder"]) / said["file"]).read_bytes()


def test_a_lora_that_was_not_installed_is_named_as_its_download_is(run: Any, finished: Path) -> None:
    address, where, session = run
    paths_of(finished).publication.unlink()
    said = session.get(f"{where}/use", timeout=20).json()
    assert (said["folder"], said["file"]) == (None, "elara.safetensors")
    assert said["file"] in session.get(address + said["lora_url"], timeout=20).headers["content-disposition"]


def test_a_prompt_is_drawn_without_and_with_the_lora_from_the_same_seeds(run: Any) -> None:
    address, where, session = run
    asked = {"prompt": "elara, standing, smile", "seeds": [1, 2], "strength": 1.0}
    begun = session.post(f"{where}/trials", json=asked, timeout=20)
    assert begun.status_code == 202, begun.text
    second = session.post(f"{where}/trials", json=asked, timeout=20)
    assert (second.status_code, "being tried" in second.json()["detail"]) == (503, True)
    (trial,) = ended(session, f"{where}/trials")
    assert (trial["state"], trial["error"]) == ("completed", "")
    assert [pair["seed"] for pair in trial["pairs"]] == [1, 2]
    drawn = {}
    for pair in trial["pairs"]:
        for side in ("before", "after"):
            answer = session.get(address + pair[side], timeout=20)
            drawn[pair["seed"], side] = np.asarray(
                Image.open(io.BytesIO(answer.content)).convert("RGB"), dtype=int
            )
    for seed in (1, 2):
        assert np.abs(drawn[seed, "before"] - drawn[seed, "after"]).mean() > 0.5, "the LoRA did nothing"
    assert np.abs(drawn[1, "before"] - drawn[2, "before"]).mean() > 0.5, "the seeds did nothing"


def test_a_trial_that_cannot_be_drawn_says_why(run: Any, finished: Path) -> None:
    _, where, session = run
    said = session.get(f"{where}/use", timeout=20).json()
    lora = Path(said["folder"]) / said["file"]
    lora.write_bytes(lora.read_bytes()[:100])
    session.post(f"{where}/trials", json={"prompt": "elara"}, timeout=20)
    (trial,) = ended(session, f"{where}/trials")
    assert trial["state"] == "failed"
    assert lora.name in trial["error"]
    assert "\n" not in trial["error"]


def test_a_run_without_a_lora_has_nothing_to_use(run: Any, finished: Path) -> None:
    _, where, session = run
    for lora in finished.rglob("*.safetensors"):
        lora.unlink()
    assert session.get(f"{where}/use", timeout=20).status_code == 404
    assert session.post(f"{where}/trials", json={"prompt": "elara"}, timeout=20).status_code == 404
    assert session.get(f"{where}/trials", timeout=20).json() == []


def test_what_an_earlier_server_began_has_failed_and_the_oldest_go(finished: Path) -> None:
    paths = paths_of(finished)
    for _ in range(KEPT + 3):
        trial = new_trial("elara", "", 1.0, (1,))
        write_model(paths.trial(trial.id).result, trial)
    shown = Trials().shown(paths)
    assert {each.state for each in shown} == {"failed"}
    assert shown[0].made_at >= shown[-1].made_at
    assert len(listed(paths)) == KEPT + 3
    (paths.trials / "rubbish").mkdir()
    (paths.trials / "rubbish" / "trial.json").write_text("{}")
    assert len(listed(paths)) == KEPT + 3
    assert read_model(paths.trial(shown[0].id).result, Trial) is not None


def test_the_set_comes_as_trainers_read_it(run: Any, finished: Path) -> None:
    _, where, session = run
    paths = paths_of(finished)
    masks = paths.masks
    masks.mkdir()
    first = sorted(paths.images.glob("*.png"))[0]
    with Image.open(first) as picture:
        Image.new("L", picture.size, 255).save(masks / first.name)
    (paths.images / "3_close").mkdir()
    Image.new("RGB", (64, 64), "red").save(paths.images / "3_close" / "own.png")
    answer = session.get(f"{where}/set.zip", timeout=60)
    assert answer.headers["content-type"] == "application/zip"
    names = set(zipfile.ZipFile(io.BytesIO(answer.content)).namelist())
    assert {f"1_elara/{first.name}", f"1_elara/{first.stem}.txt", f"masks/{first.name}"} <= names
    assert "3_elara/3_close_own.png" in names
    end = time.monotonic() + PATIENCE  # it is deleted when the answer is out
    while list(finished.glob("*.zip")):
        assert time.monotonic() < end, "the file made for the answer stays"
        time.sleep(0.05)


def test_a_run_that_waits_says_for_what(run: Any) -> None:
    _, where, session = run
    said = session.get(where, timeout=20).json()
    assert "No worker is running" in said["waits_for"]
    assert said["cautions"] == []


def test_of_those_that_ask_at_the_same_moment_one_draws(finished: Path) -> None:
    """Whether the machine is free is found out and taken in one go, whoever asks for what."""

    async def ask(address: str) -> list[int]:
        async with httpx.AsyncClient(base_url=address, timeout=60) as client:
            asked = {
                "name": ELARA.name,
                "description": ELARA.description,
                "recipe": "mini",
                "settings": list(SMALL),
            }
            made = (await client.post("/api/v1/pipelines", json=asked)).json()["id"]
            base = f"/api/v1/pipelines/{made}"
            trials = [client.post(f"{base}/trials", json={"prompt": "elara"}) for _ in range(3)]
            redraws = [client.post(f"{base}/dataset/elara_001.png/redraw") for _ in range(3)]
            return sorted(each.status_code for each in await asyncio.gather(*trials, *redraws))

    with serving(Settings(home=finished)) as address:
        assert asyncio.run(ask(address)) == [202, 503, 503, 503, 503, 503]
