"""Captions: the contract's order, pruning, and a person's edits that must survive."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from lora_foundry.backends.plan_captions import PlanCaptioner
from lora_foundry.domain.character import Character
from lora_foundry.domain.dataset import GenerationMetadata, PictureRecord
from lora_foundry.domain.picture_plan import plan_pictures
from lora_foundry.domain.recipe import Recipe
from lora_foundry.domain.run import ProgressEvent, Run
from lora_foundry.domain.shots import Shot
from lora_foundry.errors import InputError, StageError
from lora_foundry.files.paths import RunPaths
from lora_foundry.files.storage import make_folder, write_model
from lora_foundry.recipe_files import load_recipe
from lora_foundry.stages.caption import step as caption


class OnlyCaptions:
    """Ports of which only the captioner is there, and nothing that looks at pictures."""

    captioner = PlanCaptioner()
    captioners = ()


def make_run(folder: Path, *settings: str) -> Run:
    recipe = load_recipe("mini", ["generate.images=4", *settings])
    character = Character(name="Zoë van Dijk", description="1girl, brown hair, blue eyes, crown")
    run = Run(
        character=character, recipe=recipe, dataset_dir=folder, lora_dir=folder / "loras", output_name="zoe"
    )
    paths = RunPaths(folder, character.slug)
    plan = plan_pictures(character, recipe, "model")
    records = tuple(plan.record(index) for index in range(4))
    make_folder(paths.images)
    for record in records:
        Image.new("RGB", (64, 64)).save(paths.images / record.file)
    write_model(paths.generation_metadata, GenerationMetadata(
        character=character.name, trigger=character.trigger, description=character.description, recipe="mini", seed=1,
        model="model", fingerprint="x", pictures=records, seconds=0.0,
    ))  # fmt: skip
    return run


def run_stage(run: Run) -> list[str]:
    result = caption.run(run, OnlyCaptions(), lambda event: None)  # type: ignore[arg-type]
    return [each.source for each in result.captions]


def texts(run: Run) -> list[str]:
    return [
        path.read_text(encoding="utf-8").strip()
        for path in sorted((run.dataset_dir / "images").glob("*.txt"))
    ]


def compose(recipe: Recipe, shot: Shot) -> str:
    character = Character(name="Elara", description="1girl, brown hair, red dress")
    plan = plan_pictures(character, recipe, "model")
    record: PictureRecord = plan.record(0).model_copy(update={"shot": shot})
    tags = PlanCaptioner().describe(character, [record], Path())[0]
    pruned = caption.pruned_tags(character, recipe.caption)
    return caption.compose(character, record, tags, recipe.caption, (), pruned)


SHOT = Shot("running", "smiling warmly", "front view", "golden hour", "outdoor setting")


def test_the_order_is_the_contracts() -> None:
    text = compose(load_recipe("sd15-original"), SHOT)
    assert text == (
        "elara, 1girl, brown hair, red dress, running, smiling warmly, front view, golden hour, outdoor setting, "
        "high quality, detailed, best quality"
    )


def test_identity_is_pruned_where_the_recipe_says_so_but_for_what_it_keeps() -> None:
    assert compose(load_recipe("mini", ["caption.prune_identity=true"]), SHOT).startswith("elara, running")
    kept = compose(load_recipe("mini", ["caption.prune_identity=true", 'caption.keep=["Red Dress"]']), SHOT)
    assert kept.startswith("elara, red dress, running")


def test_a_shot_without_a_face_has_no_expression_and_no_gap() -> None:
    text = compose(load_recipe("mini"), SHOT._replace(expression="", angle="back view"))
    assert ", ," not in text
    assert "smiling" not in text


def test_parts_of_the_shot_can_be_left_out() -> None:
    text = compose(load_recipe("sd15", ['caption.scene=["background"]']), SHOT)
    assert "outdoor setting" in text
    assert "golden hour" not in text
    assert "front view" not in text


def test_every_picture_gets_its_caption_once(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    assert run_stage(run) == ["plan"] * 4
    first = texts(run)
    assert len(first) == 4
    assert all(text.startswith("zoë van dijk, ") for text in first)
    before = (tmp_path / "tagging_results.json").read_bytes()
    assert run_stage(run) == ["plan"] * 4
    assert texts(run) == first
    assert (tmp_path / "tagging_results.json").read_bytes() == before


def test_a_persons_caption_is_never_overwritten(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    run_stage(run)
    edited = sorted((tmp_path / "images").glob("*.txt"))[1]
    edited.write_text("zoë van dijk, with a sword\n", encoding="utf-8")
    changed = make_run(tmp_path, "caption.prune_identity=false")
    assert run_stage(changed) == ["plan", "edited", "plan", "plan"]
    assert run_stage(changed) == ["plan", "edited", "plan", "plan"]
    assert texts(run)[1] == "zoë van dijk, with a sword"
    assert "brown hair" in texts(run)[0]


def test_a_caption_that_was_there_before_us_is_a_persons(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    own = tmp_path / "images" / "zoë_van_dijk_003.txt"
    own.write_text("my own words", encoding="utf-8")
    assert run_stage(run)[2] == "edited"
    assert texts(run)[2] == "my own words"


def test_a_missing_picture_is_named(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    (tmp_path / "images" / "zoë_van_dijk_002.png").unlink()
    with pytest.raises(StageError, match="zoë_van_dijk_002"):
        run_stage(run)


def test_a_picture_is_the_same_whoever_saves_the_caption(tmp_path: Path) -> None:
    """An editor's line ends or byte-order mark are no edit."""
    run = make_run(tmp_path)
    run_stage(run)
    path = sorted((tmp_path / "images").glob("*.txt"))[0]
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert run_stage(run) == ["plan"] * 4


def test_a_deleted_caption_comes_back(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    run_stage(run)
    before = texts(run)
    sorted((tmp_path / "images").glob("*.txt"))[2].unlink()
    assert run_stage(run) == ["plan"] * 4
    assert texts(run) == before


@pytest.mark.parametrize(
    ("content", "words"), [(b"", "is empty"), (b" \n", "is empty"), (b"\xff\xfe1", "save it as UTF-8")]
)
def test_a_caption_that_no_trainer_could_use_is_named(tmp_path: Path, content: bytes, words: str) -> None:
    run = make_run(tmp_path)
    run_stage(run)
    (tmp_path / "images" / "zoë_van_dijk_002.txt").write_bytes(content)
    with pytest.raises(InputError, match=rf"zoë_van_dijk_002\.txt.*{words}"):
        run_stage(run)


class Stop(Exception):
    """Stands for a kill."""


def run_until(run: Run, done: int) -> None:
    def stop(event: ProgressEvent) -> None:
        if event.done == done:
            raise Stop

    with pytest.raises(Stop):
        caption.run(run, OnlyCaptions(), stop)  # type: ignore[arg-type]


@pytest.mark.parametrize("done", [1, 2, 4])
def test_what_a_killed_stage_wrote_is_not_taken_for_a_persons(tmp_path: Path, done: int) -> None:
    """Not even if the recipe was changed twice, with a kill in between, and one caption was edited all along."""
    run_until(make_run(tmp_path), done)
    edited = tmp_path / "images" / "zoë_van_dijk_003.txt"
    edited.write_text("mine", encoding="utf-8")
    run_until(make_run(tmp_path, "caption.prune_identity=false"), done)
    last = make_run(tmp_path, 'caption.quality_tags=["fine"]')
    assert run_stage(last) == ["plan", "plan", "edited", "plan"]
    assert [text.endswith(", fine") for text in texts(last)] == [True, True, False, True]
    assert run_stage(last) == ["plan", "plan", "edited", "plan"]
    assert not (tmp_path / ".captions.json").exists()
