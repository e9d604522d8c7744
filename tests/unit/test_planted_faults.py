"""Faults planted among forty pictures of one character, seen with the bundled eye: all are caught, and a clean set
loses next to nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from lora_foundry.backends.mini_instruments import MiniEmbedder
from lora_foundry.domain.curation import CurationResult
from lora_foundry.domain.dataset import GenerationMetadata
from lora_foundry.domain.run import Run
from lora_foundry.files.images import save_picture
from lora_foundry.files.paths import RunPaths
from lora_foundry.files.storage import write_model
from lora_foundry.stages._shared.drawing import start_context
from lora_foundry.stages.curate import step as curate
from mini_world.character import Character as Look
from mini_world.character import sample_character
from mini_world.render import render
from mini_world.scene import Scene, sample_scene
from tests.painted import PaintedPorts, make_run, quiet

pytestmark = pytest.mark.slow

SETTINGS = ("curate.budget=1", "curate.fill=0")
DUPLICATES, BLANKS, BLURRED, STRANGERS = (5, 11, 17, 23, 29), (2, 20, 33), (8, 26), (1, 14, 30, 38)


def drawn(look: Look, number: int, rng: np.random.Generator) -> Image.Image:
    scene: Scene = sample_scene(rng, look)
    return Image.fromarray(render(scene, number))


def stranger(look: Look, rng: np.random.Generator) -> Look:
    """Somebody else altogether, with other colours."""
    other = sample_character(rng)
    while other.hair_color == look.hair_color or other.accessory == look.accessory:
        other = sample_character(rng)
    return replace(other, outfit_color="green" if look.outfit_color != "green" else "red")


def make_set(folder: Path, seed: int, planted: bool) -> Run:
    run = make_run(folder, *SETTINGS)
    rng = np.random.default_rng(seed)
    look = sample_character(rng)
    paths = RunPaths(folder, run.character.slug)
    plan = start_context(run, ports()).plan(run)
    pictures: list[Image.Image] = []
    for index in range(40):
        image = drawn(look, index, rng)
        if planted and index in DUPLICATES:
            image = pictures[index - 4].copy()
            image.putpixel((3, 3), (9, 9, 9))
        elif planted and index in BLANKS:
            image = Image.new("RGB", (64, 64), (index * 5, 90, 120))
        elif planted and index in BLURRED:
            image = image.filter(ImageFilter.GaussianBlur(4))
        elif planted and index in STRANGERS:
            image = drawn(stranger(look, rng), index, rng)
        pictures.append(image)
    records = tuple(
        save_picture(paths.image(index), image, plan.record(index)) for index, image in enumerate(pictures)
    )
    write_model(
        paths.generation_metadata,
        GenerationMetadata(
            character=run.character.name, trigger=run.character.trigger, description="", recipe="mini", seed=1,
            model=plan.model, fingerprint=plan.fingerprint(), pictures=records, seconds=0.0,
        ),
    )  # fmt: skip
    return run


def ports() -> PaintedPorts:
    made = PaintedPorts()
    made.embedder = MiniEmbedder()
    return made


def faults(result: CurationResult) -> dict[int, set[str]]:
    return {verdict.index: {reason.code for reason in verdict.reasons} for verdict in result.rejected}


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_all_planted_faults_are_caught(tmp_path: Path, seed: int) -> None:
    result = curate.run(make_set(tmp_path, seed, planted=True), ports(), quiet)  # type: ignore[arg-type]
    found = faults(result)
    assert all("duplicate" in found[index] for index in DUPLICATES)
    assert all("blank" in found[index] for index in BLANKS)
    assert all("blurred" in found[index] for index in BLURRED)
    assert all("identity" in found[index] for index in STRANGERS)
    planted = {*DUPLICATES, *BLANKS, *BLURRED, *STRANGERS}
    assert len(found.keys() - planted) <= 2
    assert all(verdict.reasons[0].text and (tmp_path / verdict.file).exists() for verdict in result.rejected)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_clean_set_loses_at_most_one_in_twenty(tmp_path: Path, seed: int) -> None:
    result = curate.run(make_set(tmp_path, seed, planted=False), ports(), quiet)  # type: ignore[arg-type]
    assert len(result.rejected) <= 2
    assert result.cohesion is not None
    assert result.distance is not None


def test_what_the_set_leaves_out_is_told_and_stays_out(tmp_path: Path) -> None:
    run = make_set(tmp_path, 1, planted=True)
    result = curate.run(run, ports(), quiet)  # type: ignore[arg-type]
    assert set(result.left_out) == faults(result).keys()
    assert len(list((tmp_path / "images").glob("*.png"))) == len(result.accepted) == 40 - len(result.left_out)
    assert curate.run(run, ports(), quiet) == result  # type: ignore[arg-type]


def test_a_users_own_pictures_are_kept_and_marked(tmp_path: Path) -> None:
    run = make_set(tmp_path, 1, planted=False)
    mine = tmp_path / "images" / "holiday.png"
    Image.new("RGB", (80, 60), "white").save(mine)
    before = mine.read_bytes()
    result = curate.run(run, ports(), quiet)  # type: ignore[arg-type]
    assert mine.read_bytes() == before
    assert [verdict.file for verdict in result.own] == ["images/holiday.png"]
    assert {reason.code for reason in result.own[0].reasons} >= {"blank"}
