"""A style instead of a character: the same pipeline by another recipe, and a measure that knows how a picture is made."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter, ImageOps

from lora_foundry.backends.style import StyleEmbedder
from lora_foundry.domain.assessment import Found, assess
from lora_foundry.domain.captions import shared_tags
from lora_foundry.domain.cast import Member
from lora_foundry.domain.character import Character
from lora_foundry.domain.evaluation import Evaluation, ScoreRow
from lora_foundry.domain.run import Run
from lora_foundry.errors import InputError
from lora_foundry.recipe_files import load_recipe, recipe_names, write_own_recipe
from lora_foundry.settings import Settings
from lora_foundry.web.setups import Readiness
from lora_foundry.web.suggesting import Candidate, suggest
from mini_world.render import render
from mini_world.scene import sample_scene

STYLES = ["mini-style", "sdxl-style"]


def scenes(count: int) -> list[Image.Image]:
    rng = np.random.default_rng(3)
    return [
        Image.fromarray(np.asarray(render(sample_scene(rng), each))).resize((256, 256))
        for each in range(count)
    ]


def line_art(picture: Image.Image) -> Image.Image:
    return ImageOps.invert(picture.convert("L").filter(ImageFilter.FIND_EDGES))


def sepia(picture: Image.Image) -> Image.Image:
    return ImageOps.colorize(picture.convert("L"), (60, 30, 10), (250, 240, 210))


def test_a_style_is_nearer_to_itself_with_anything_in_it_than_to_the_same_scene_in_another() -> None:
    embedder, plain = StyleEmbedder(), scenes(12)
    rows = [
        embedder.embed([change(each) for each in plain]) for change in (Image.Image.copy, line_art, sepia)
    ]
    means = [each.mean(axis=0) / np.linalg.norm(each.mean(axis=0)) for each in rows]
    for own, row in enumerate(rows):
        assert np.allclose(np.linalg.norm(row, axis=1), 1, atol=1e-4)
        nearest = [int(np.argmax([one @ mean for mean in means])) for one in row]
        assert nearest == [own] * len(row)
    least = min(float(one @ mean) for row, mean in zip(rows[1:], means[1:], strict=True) for one in row)
    assert least > StyleEmbedder.same, "what `same` promises, of styles that a filter keeps exactly"


def test_a_mirrored_picture_and_another_place_change_nothing_of_the_style_and_the_size_does() -> None:
    embedder, (picture,) = StyleEmbedder(), scenes(1)
    moved = Image.fromarray(np.roll(np.asarray(picture), 64, axis=(0, 1)))
    coarse = picture.resize((32, 32), Image.Resampling.BOX).resize((256, 256), Image.Resampling.NEAREST)
    first, *others = embedder.embed([picture, moved, coarse])
    assert first @ others[0] > 0.99
    assert first @ others[1] < 0.97
    assert embedder.embed([]).shape == (0, len(first))


@pytest.mark.parametrize("name", STYLES)
def test_a_recipe_for_styles_is_its_base_and_what_a_style_needs(name: str) -> None:
    recipe, base = load_recipe(name), load_recipe(name.removesuffix("-style"))
    assert (recipe.dataset.source, recipe.model.embedder, recipe.evaluate.subject) == (
        "own",
        "style",
        "style",
    )
    assert not recipe.curate.identity, "each picture shows somebody else"
    kept = {"regularisation", "regularisation_folder"}
    if name == "mini-style":  # strokes are learnt more slowly than who is drawn
        assert recipe.train.steps > base.train.steps
        kept |= {"steps", "learning_rate"}
    assert recipe.train.model_dump(exclude=kept) == base.train.model_dump(exclude=kept)
    assert recipe.model.base == base.model.base
    assert len(set(recipe.shots.poses)) > 4


def test_later_names_that_a_recipe_extends_go_over_earlier_ones() -> None:
    assert load_recipe("mini-style").shots.faceless == (), "an empty list takes the place of what was there"
    assert load_recipe("mini-style").generate == load_recipe("mini").generate


def test_a_style_may_show_without_its_trigger_and_a_character_may_not() -> None:
    style = assess(Found(0.9, 0.0, 0.9, subject="style"))
    assert (style.level, style.reason) == ("good", "0.90 of the way from the base to the style")
    assert assess(Found(0.9, 0.5, 0.9)).level == "weak"
    assert "the style" in assess(Found(0.2, subject="style")).reason


@pytest.mark.parametrize(
    ("after", "level"), [(0.95, "good"), (0.92, "usable"), (0.84, "bad"), (0.8, "bad"), (None, "unmeasured")]
)
def test_a_style_counts_from_what_the_base_draws_already(after: float | None, level: str) -> None:
    row = ScoreRow(likeness=after)
    found = Evaluation(
        character="Ink", trigger="ink", model="m", before=ScoreRow(likeness=0.8), after=row, without_trigger=row,
        strength=1, lora_sha256="", shots=1, held_out=1, own_likeness=0.97, fingerprint="", seconds=1, subject="style",
    )  # fmt: skip
    assert found.assessment.level == level
    assert found.scores.identity_before == 0.0
    assert (found.scores.measure, found.scores.identity_without_trigger) == ("style", None)
    alike = found.model_copy(update={"before": ScoreRow(likeness=0.96)})
    assert alike.assessment.level == "unmeasured", "there is nothing to learn, and nothing to be called good"


def test_what_nearly_all_pictures_share_is_the_style_and_is_left_to_the_trigger() -> None:
    seen = [["monochrome", "1girl"], ["monochrome", "cat"], ["monochrome", "sketch"]]
    assert shared_tags(seen, 0.8) == ("monochrome",)


def test_the_style_part_of_a_recipe_comes_last(tmp_path: Path) -> None:
    (tmp_path / "turned.toml").write_text('extends = ["_style", "sdxl"]')
    with pytest.raises(InputError, match='"_style", that name comes last'):
        load_recipe(str(tmp_path / "turned.toml"))
    (tmp_path / "_house.toml").write_text("[train]\nrank = 9\n")
    (tmp_path / "mine.toml").write_text('extends = ["mini", "_house.toml", "_style"]')
    write_own_recipe(tmp_path, "mine", "mine", "", ["train.alpha=3"])
    mine = load_recipe("mine", folders=[tmp_path])
    assert (mine.train.rank, mine.train.alpha, mine.evaluate.subject) == (9, 3, "style")


def test_no_recipe_for_own_pictures_is_suggested_to_somebody_without_a_say() -> None:
    here = [
        Candidate(
            load_recipe(name), Readiness(recipe=name, ready=True, family="sdxl", needs=[], fetchable=True)
        )
        for name in recipe_names()
    ]
    assert suggest(Settings(), here, [], has_gpu=True).recipe not in STYLES


def test_a_cast_is_not_made_by_a_recipe_for_styles() -> None:
    members = tuple(Member(character=Character(name=name, description="1girl")) for name in ("Ada", "Bo"))
    with pytest.raises(InputError, match="is for a style"):
        Run(
            character=Character(name="Pair", description=""),
            recipe=load_recipe("mini-style"),
            dataset_dir=Path("/nowhere/Pair"),
            lora_dir=Path("/nowhere"),
            output_name="pair",
            members=members,
        )
