"""Crops of own pictures: cut around the one face, trained beside the originals, which nothing changes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from lora_foundry import pipeline
from lora_foundry.domain.captions import framed
from lora_foundry.domain.dataset import Crops, TaggingResults
from lora_foundry.domain.exclusion import Exclusion, Exclusions
from lora_foundry.domain.run import Run
from lora_foundry.errors import InputError
from lora_foundry.files.hashing import file_hash
from lora_foundry.files.images import read_alpha, read_picture
from lora_foundry.files.paths import RunPaths
from lora_foundry.files.storage import require_model, write_model
from lora_foundry.files.training_set import list_set, read_set
from lora_foundry.files.versions import make_room
from lora_foundry.ports import Box, TrainingImage
from lora_foundry.recipe_files import load_recipe
from lora_foundry.stages.caption import step as caption
from lora_foundry.stages.curate import step as curate
from lora_foundry.stages.curate.crops import frame
from lora_foundry.stages.train.step import collect_images
from lora_foundry.web.cropping import Area, crop_picture
from tests.painted import PaintedPorts, make_run, paint, quiet
from tests.unit.test_own_pictures import OwnPorts

RED = (255, 0, 0)
BOTH = 'dataset.crops=["face", "upper_body"]'


class RedFaces:
    """Takes every red rectangle for a face; two of them have a gap of 10 pixels between them at least."""

    def find(self, images: Sequence[Image.Image]) -> list[list[Box]]:
        return [self._one(np.asarray(image, int)) for image in images]

    def _one(self, pixels: np.ndarray) -> list[Box]:
        red = (pixels[..., 0] > 200) & (pixels[..., 1:].max(axis=-1) < 60)
        columns = np.flatnonzero(red.any(axis=0))
        parts = np.split(columns, np.flatnonzero(np.diff(columns) > 10) + 1) if len(columns) else []
        rows = np.flatnonzero(red.any(axis=1))
        return [Box(part[0], rows[0], len(part), len(rows)) for part in parts]


class Ports(OwnPorts):
    def __init__(self) -> None:
        super().__init__()
        self.detector, self.embedder = RedFaces(), None  # type: ignore[assignment]


def portrait(path: Path, faces: Sequence[tuple[int, int]] = ((70, 40),), side: int = 24) -> Path:
    """A picture of 160 x 240 pixels with a red face at each place."""
    image = paint(len(path.stem), (160, 240))
    for left, top in faces:
        ImageDraw.Draw(image).rectangle((left, top, left + side - 1, top + side - 1), fill=RED)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    return path


def crop_run(folder: Path, *settings: str) -> tuple[Run, RunPaths]:
    run = make_run(folder, "dataset.source=own", "model.detector=yunet", "curate.min_sharpness=0",
                   "train.resolution=64", *settings)  # fmt: skip
    return run, RunPaths(run.dataset_dir, run.character.slug)


def train(run: Run, paths: RunPaths) -> dict[str, TrainingImage]:
    """The set as the trainer gets it, after the stages before."""
    ports = Ports()
    pipeline.generate(run, ports, quiet)
    curate.run(run, ports, quiet)
    tagged = caption.run(run, ports, quiet)
    found = collect_images(run, paths, tagged)
    return {image.path.relative_to(paths.images).as_posix(): image for image in found}


def test_crops_are_trained_beside_their_originals(tmp_path: Path) -> None:
    run, paths = crop_run(tmp_path, BOTH)
    one = portrait(paths.images / "10_me" / "one.png")
    portrait(paths.images / "two.png", ((20, 40), (110, 40)))
    paint(9, (160, 240)).save(paths.images / "none.png")
    (paths.images / "10_me" / "one.txt").write_text("zoë, waving, full body, in a park")
    before = {path.name: path.read_bytes() for path in paths.images.rglob("*.*")}
    trained = train(run, paths)
    crops = {"10_me/one.face.png", "10_me/one.upper_body.png"}
    assert set(trained) == {"10_me/one.png", "two.png", "none.png"} | crops
    assert {
        name: path.read_bytes() for path in paths.images.rglob("*.*") if (name := path.name) in before
    } == before
    assert {trained[name].repeats for name in crops} == {10}, "as often as the original"
    face = read_picture(trained["10_me/one.face.png"].path)
    assert face.size == (53, 53)
    assert RedFaces().find([face])[0][0][2:] == (24, 24)
    record = require_model(paths.crops, Crops, "curate").files["10_me/one.face.png"]
    assert (record.source, record.framing, record.source_sha256) == ("10_me/one.png", "face", file_hash(one))
    left, top, right, bottom = record.box
    assert (np.asarray(read_picture(one))[top:bottom, left:right] == np.asarray(face)).all()
    trigger = run.character.trigger
    assert trained["10_me/one.face.png"].caption == f"{trigger}, zoë, waving, in a park, close-up portrait"
    assert trained["10_me/one.upper_body.png"].caption.endswith("upper body shot")
    assert {picture.name for picture in list_set(paths).own} == {"10_me/one.png", "two.png", "none.png"}


def test_a_crop_of_a_picture_without_a_caption_gets_one_that_names_the_framing(tmp_path: Path) -> None:
    run, paths = crop_run(tmp_path, 'dataset.crops=["face"]')
    portrait(paths.images / "one.png")
    trained = train(run, paths)
    assert "close-up portrait" in trained["one.face.png"].caption
    assert "close-up portrait" not in trained["one.png"].caption
    assert trained["one.face.png"].caption.startswith(run.character.trigger)


def test_cutting_again_changes_nothing_and_leaves_what_a_person_has_changed(tmp_path: Path) -> None:
    run, paths = crop_run(tmp_path, BOTH)
    portrait(paths.images / "one.png")
    train(run, paths)
    stamps = {path: path.stat().st_mtime_ns for path in paths.images.iterdir()}
    stamps[paths.crops] = paths.crops.stat().st_mtime_ns
    train(run, paths)
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    retouched = paths.images / "one.face.png"
    paint(5, (53, 53)).save(retouched)
    mine = retouched.read_bytes()
    assert set(train(run, paths)) == {"one.png", "one.face.png", "one.upper_body.png"}
    without, _ = crop_run(tmp_path)
    assert set(train(without, paths)) == {"one.png", "one.face.png"}, (
        "the changed one is a person's picture now"
    )
    assert retouched.read_bytes() == mine
    assert [path.name for path in (tmp_path / "images.previous-1").iterdir() if path.suffix == ".png"] == [
        "one.upper_body.png"
    ]


def test_a_picture_that_is_thrown_out_takes_its_crops_with_it(tmp_path: Path) -> None:
    run, paths = crop_run(tmp_path, 'dataset.crops=["face"]')
    for name in ("one.png", "other.png"):
        portrait(paths.images / name)
    train(run, paths)
    mark = Exclusion(sha256=file_hash(paths.images / "one.png"), at="2026-01-01T00:00:00Z")  # type: ignore[arg-type]
    write_model(paths.exclusions, Exclusions(files={"one.png": mark}))
    assert read_set(paths).names() == {"other.png", "other.face.png"}, "at once, before anything runs again"
    assert any("cut from" in each.reason for each in read_set(paths).left_out)
    assert set(train(run, paths)) == {"other.png", "other.face.png"}
    (paths.images / "other.png").unlink()
    assert read_set(paths).names() == set()


def test_a_changed_original_is_cut_anew_and_two_of_one_stem_have_their_own(tmp_path: Path) -> None:
    run, paths = crop_run(tmp_path, 'dataset.crops=["face"]')
    portrait(paths.images / "one.png")
    Image.open(portrait(tmp_path / "other.png", ((30, 90),))).save(
        paths.images / "one.jpg", quality=100, subsampling=0
    )
    names = set(train(run, paths))
    assert names == {"one.png", "one.jpg", "one.face.png", "one.face-2.png"}
    sources = {name: crop.source for name, crop in require_model(paths.crops, Crops, "curate").files.items()}
    assert sorted(sources.values()) == ["one.jpg", "one.png"]
    mine = next(name for name, source in sources.items() if source == "one.png")
    old = (paths.images / mine).read_bytes()
    portrait(paths.images / "one.png", ((90, 120),))
    assert set(train(run, paths)) == names
    assert (paths.images / mine).read_bytes() != old


def test_a_mask_and_transparency_are_cut_with_the_picture(tmp_path: Path) -> None:
    run, paths = crop_run(tmp_path, 'dataset.crops=["face"]', "train.mask=folder")
    picture = portrait(paths.images / "a" / "one.png")
    layers = Image.open(picture).convert("RGBA")
    alpha = Image.new("L", layers.size, 255)
    ImageDraw.Draw(alpha).rectangle((0, 0, 63, 239), fill=90)  # left of the face
    layers.putalpha(alpha)
    layers.save(picture)
    mask = Image.new("L", (80, 120), 255)  # of the picture's shape, half as large
    ImageDraw.Draw(mask).rectangle((0, 0, 79, 25), fill=0)
    (paths.masks / "a").mkdir(parents=True)
    mask.save(paths.masks / "a" / "one.png")
    trained = train(run, paths)["a/one.face.png"]
    assert trained.mask == paths.masks / "a" / "one.face.png"
    shown = np.asarray(Image.open(trained.mask))
    box = require_model(paths.crops, Crops, "curate").files["a/one.face.png"].box
    assert shown.shape == pytest.approx(((box[3] - box[1]) / 2, (box[2] - box[0]) / 2), abs=1)
    assert (shown == 0).any()
    assert (shown == 255).any()
    assert (np.asarray(read_alpha(trained.path)) == np.asarray(alpha)[box[1] : box[3], box[0] : box[2]]).all()
    assert read_alpha(trained.path).getextrema() == (90, 255)


def test_crops_without_a_detector_are_refused_before_anything_begins() -> None:
    with pytest.raises(InputError, match=r'model\.detector = "yunet"'):
        load_recipe("mini", [BOTH])


def test_what_would_be_too_small_or_the_picture_itself_is_not_cut(tmp_path: Path) -> None:
    run, paths = crop_run(tmp_path, 'dataset.crops=["face"]')
    portrait(paths.images / "small.png", side=12)
    portrait(paths.images / "large.png", ((20, 60),), side=120)
    told: list[str] = []
    ports = Ports()
    pipeline.generate(run, ports, quiet)
    curate.run(run, ports, lambda event: told.append(event.message))
    assert list_set(paths).names() == {"small.png", "large.png"}
    assert told[-1] == "0 crops of own pictures; 1 are that close already; 1 would be too small"


def test_drawn_pictures_are_not_cut(tmp_path: Path) -> None:
    run = make_run(tmp_path, BOTH, "model.detector=yunet", "generate.images=4", "curate.budget=1")
    paths = RunPaths(run.dataset_dir, run.character.slug)
    ports = PaintedPorts()
    ports.detector = RedFaces()  # type: ignore[assignment]
    pipeline.generate(run, ports, quiet)
    curate.run(run, ports, quiet)
    assert len(list_set(paths).pictures) == 4
    assert not paths.crops.exists()


SHARE = st.floats(0, 1)


@given(
    SHARE,
    SHARE,
    SHARE,
    SHARE,
    st.integers(8, 9000),
    st.integers(8, 9000),
    st.sampled_from(["face", "upper_body"]),
)
def test_a_frame_lies_in_the_picture(  # noqa: PLR0917
    left: float, top: float, width: float, height: float, across: int, down: int, framing: str
) -> None:
    box = frame((left, top, width * (1 - left), height * (1 - top)), (across, down), framing)  # type: ignore[arg-type]
    assert 0 <= box[0] <= box[2] <= across
    assert 0 <= box[1] <= box[3] <= down


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("elara, full body, smile", "elara, smile, close-up portrait"),
        ("Elara smiles at us.", "Elara smiles at us., close-up portrait"),
        ("elara, close-up portrait", "elara, close-up portrait"),
    ],
)
def test_a_caption_names_one_framing(caption: str, expected: str) -> None:
    assert framed(caption, "close-up portrait") == expected


def test_a_caption_of_a_crop_that_a_person_has_written_stays(tmp_path: Path) -> None:
    run, paths = crop_run(tmp_path, 'dataset.crops=["face"]')
    portrait(paths.images / "one.png")
    train(run, paths)
    (paths.images / "one.face.txt").write_text("her face")
    assert train(run, paths)["one.face.png"].caption == f"{run.character.trigger}, her face"
    tagged = require_model(paths.tagging_results, TaggingResults, "caption")
    assert {each.file: each.source for each in tagged.captions} == {
        "one.png": "plan",
        "one.face.png": "edited",
    }


def test_what_a_person_cut_takes_the_place_of_their_picture_in_every_stage(tmp_path: Path) -> None:
    run, paths = crop_run(tmp_path, 'dataset.crops=["face"]')
    for name in ("one", "two"):
        portrait(paths.images / f"{name}.png")
    (paths.images / "two.txt").write_text("zoë, waving, full body")
    train(run, paths)
    for name in ("one.png", "two.png"):
        picture = list_set(paths).find(name)
        assert picture is not None
        assert crop_picture(paths, picture, Area(30, 20, 100, 120)) == name.replace(".png", ".crop.png")
    expected = {"one.crop.png", "one.face.png", "two.crop.png", "two.face.png"}
    assert set(train(run, paths)) == expected, "those of the detector stay beside it"
    trained = train(run, paths)
    assert set(trained) == expected
    assert trained["two.crop.png"].caption == f"{run.character.trigger}, zoë, waving, full body"
    tagged = {
        each.file: each for each in require_model(paths.tagging_results, TaggingResults, "caption").captions
    }
    assert tagged["one.crop.png"].source == "plan", (
        "its caption came from the captioner, so it follows the recipe"
    )
    for name in ("one.png", "two.png"):
        (paths.images / name).unlink()  # the owner keeps the parts alone
    assert {"one.crop.png", "two.crop.png"} <= {each.name for each in read_set(paths).pictures}


def test_a_run_that_replaces_another_keeps_what_a_person_cut_of_their_own(tmp_path: Path) -> None:
    run, paths = crop_run(tmp_path, 'dataset.crops=["face"]')
    portrait(paths.images / "one.png")
    train(run, paths)
    write_model(paths.run_file, run.model_copy(update={"version": 1}))
    picture = list_set(paths).find("one.png")
    assert picture is not None
    crop_picture(paths, picture, Area(30, 20, 100, 120))
    make_room(paths, run.model_copy(update={"version": 2, "replaces": True}))
    assert {path.name for path in paths.images.glob("*.png")} == {"one.png", "one.crop.png"}
    assert [each.name for each in read_set(paths).pictures] == ["one.crop.png"]
