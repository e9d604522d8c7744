"""The curate stage: planted faults are all found, what is rejected is made again, and the set ends full and
true."""

from __future__ import annotations

import shutil
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from lora_foundry.domain.curation import CurationResult
from lora_foundry.domain.dataset import GenerationMetadata
from lora_foundry.domain.picture_plan import plan_pictures
from lora_foundry.domain.run import ProgressEvent
from lora_foundry.domain.shots import AXES
from lora_foundry.errors import BackendError, InputError, StageError
from lora_foundry.files import storage, training_set
from lora_foundry.files.hashing import file_hash
from lora_foundry.files.images import load_picture, read_record
from lora_foundry.files.storage import read_model
from lora_foundry.ports import Box, Trait
from lora_foundry.stages.curate import quality, selection
from lora_foundry.stages.curate import step as curate
from lora_foundry.stages.generate import step as generate
from tests.painted import PaintedGenerator, PaintedPorts, make_run, paint, quiet, spoil, tree

FAULTS = {"003.0": "blank", "010.0": "blurred", "017.0": "duplicate", "031.0": "duplicate", "010.1": "blank"}


def both(folder: Path, *settings: str, painter: PaintedGenerator | None = None) -> CurationResult:
    run, ports = make_run(folder, *settings), PaintedPorts(painter or PaintedGenerator())
    generate.run(run, ports, quiet)
    return curate.run(run, ports, quiet)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two folders that no test writes to: `generated` with planted faults, as curation finds it, and `whole`, curated without
    a disturbance."""
    folder = tmp_path_factory.mktemp("made")
    generate.run(make_run(folder / "generated"), PaintedPorts(PaintedGenerator(FAULTS)), quiet)
    shutil.copytree(folder / "generated", folder / "whole")
    curate.run(make_run(folder / "whole"), PaintedPorts(PaintedGenerator(FAULTS)), quiet)
    return folder


def reasons(result: CurationResult) -> dict[str, list[str]]:
    return {
        f"{verdict.index + 1:03d}.{verdict.attempt}": [reason.code for reason in verdict.reasons]
        for verdict in result.rejected
    }


def test_a_clean_set_loses_nothing(tmp_path: Path) -> None:
    result = both(tmp_path)
    assert result.rejected == ()
    assert result.made == 40
    assert [verdict.index for verdict in result.accepted] == list(range(40))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "curation.json",
        "generation_metadata.json",
        "images",
    ]


def test_rejected_pictures_are_made_again_for_the_same_shot(tmp_path: Path) -> None:
    painter = PaintedGenerator(FAULTS)
    result = both(tmp_path, painter=painter)
    # 017 is the first of the two that came out alike, so it stays and 031 goes.
    assert reasons(result) == {
        "003.0": ["blank"],
        "010.0": ["blurred"],
        "010.1": ["blank"],
        "031.0": ["duplicate"],
    }
    assert painter.made[40:] == ["003.1", "010.1", "031.1", "010.2"]
    assert result.made == 44
    run = make_run(tmp_path)
    plan = plan_pictures(run.character, run.recipe, painter.model)
    metadata = read_model(tmp_path / "generation_metadata.json", GenerationMetadata)
    assert metadata is not None
    for index, picture in enumerate(metadata.pictures):
        path = tmp_path / "images" / picture.file
        attempt = {2: 1, 9: 2, 30: 1}.get(index, 0)
        assert picture == plan.record(index, attempt).model_copy(update={"sha256": file_hash(path)})
        assert picture.shot == plan.shots[index]
        assert read_record(path) == plan.record(index, attempt)
    assert {path.name for path in (tmp_path / "rejected").iterdir()} == {
        "zoë_van_dijk_003_attempt1.png", "zoë_van_dijk_010_attempt1.png", "zoë_van_dijk_010_attempt2.png",
        "zoë_van_dijk_031_attempt1.png",
    }  # fmt: skip
    for verdict in (*result.accepted, *result.rejected):
        assert (tmp_path / verdict.file).exists()
    assert not (tmp_path / "candidates").exists()


def test_planted_faults_are_all_caught(tmp_path: Path) -> None:
    """Five near-copies, three blanks, two blurred among forty, put into the folder behind the generator's
    back."""
    run, ports = make_run(tmp_path), PaintedPorts()
    generate.run(run, ports, quiet)
    images = sorted((tmp_path / "images").iterdir())
    for victim, source in ((30, 1), (31, 2), (32, 3)):
        shutil.copyfile(images[source], images[victim])
    for victim, source in ((33, 4), (34, 5)):  # saved again with loss, as from a messenger
        copy = load_picture(images[source])
        assert copy is not None
        copy.save(tmp_path / "lossy.jpg", quality=85)
        with Image.open(tmp_path / "lossy.jpg") as lossy:
            lossy.save(images[victim])
    Image.new("RGB", (64, 64), (0, 0, 0)).save(images[10])
    Image.new("RGB", (64, 64), (250, 250, 255)).save(images[11])
    spoil(paint(3, (64, 64)), "blank").save(images[12])
    for victim in (20, 21):
        paint(victim, (64, 64)).filter(ImageFilter.GaussianBlur(1.5)).save(images[victim])
    result = curate.run(run, ports, quiet)
    expected = {11: "blank", 12: "blank", 13: "blank", 21: "blurred", 22: "blurred"}
    expected |= dict.fromkeys(range(31, 36), "duplicate")
    assert reasons(result) == {f"{number:03d}.0": [fault] for number, fault in expected.items()}
    assert all(not verdict.reasons for verdict in result.accepted)


def test_unreadable_and_wrongly_sized_pictures_are_replaced(tmp_path: Path) -> None:
    run, ports = make_run(tmp_path), PaintedPorts()
    generate.run(run, ports, quiet)
    images = sorted((tmp_path / "images").iterdir())
    images[0].write_bytes(b"nothing")
    images[1].write_bytes(images[1].read_bytes()[:-100])
    paint(1, (96, 64)).save(images[2])
    result = curate.run(run, ports, quiet)
    assert reasons(result) == {"001.0": ["undecodable"], "002.0": ["undecodable"], "003.0": ["wrong_size"]}
    assert result.rejected[2].reasons[0].text == "96x64 instead of 64x64"
    assert result.accepted[0].attempt == 1


def test_drawings_of_one_character_are_no_duplicates(tmp_path: Path) -> None:
    """The pictures the mini recipe is for: small, simple, of one character. A clean set loses at most 5 %."""
    from mini_world.render import render
    from mini_world.scene import sample_character, sample_scene

    run, ports = make_run(tmp_path), PaintedPorts()
    generate.run(run, ports, quiet)
    rng = np.random.default_rng(7)
    character = sample_character(rng)
    for number, path in enumerate(sorted((tmp_path / "images").iterdir())):
        Image.fromarray(render(sample_scene(rng, character), number)).save(path)
    assert len(curate.run(run, ports, quiet).rejected) <= 2


def test_a_spent_budget_takes_the_best_there_is_and_says_so(tmp_path: Path) -> None:
    faults = {"002.0": "blank", "002.1": "blurred", "002.2": "blank", "005.0": "blank", "005.1": "blank",
              "005.2": "blank"}  # fmt: skip
    result = both(tmp_path, "generate.images=6", "curate.budget=1.7", painter=PaintedGenerator(faults))
    assert (result.made, result.budget) == (10, 10)
    assert len(list((tmp_path / "images").glob("*.png"))) == 6
    taken = {verdict.index: verdict for verdict in result.accepted if verdict.reasons}
    assert {index: (verdict.attempt, verdict.reasons[0].code) for index, verdict in taken.items()} == {
        1: (1, "blurred"),
        4: (0, "blank"),
    }
    assert all(verdict.accepted for verdict in taken.values())
    assert len(result.rejected) == 4


@pytest.mark.parametrize("budget", ["1", "1.05", "1.1"])
def test_the_budget_is_never_exceeded(tmp_path: Path, budget: str) -> None:
    painter = PaintedGenerator({f"{n:03d}.0": "blank" for n in range(1, 11)})
    result = both(tmp_path, f"curate.budget={budget}", painter=painter)
    assert result.made == len(painter.made) == int(40 * float(budget) + 1e-9)
    assert len(result.accepted) == 40


def test_no_usable_picture_fails_with_the_count_and_the_reason(tmp_path: Path) -> None:
    run, ports = make_run(tmp_path, "curate.budget=1"), PaintedPorts()
    generate.run(run, ports, quiet)
    for number in (7, 8):
        (tmp_path / "images" / f"zoë_van_dijk_{number:03d}.png").write_bytes(b"")
    with pytest.raises(StageError, match=r"2 of 40 pictures are missing after 40 .*007: the file is no"):
        curate.run(run, ports, quiet)
    assert not (tmp_path / "curation.json").exists()


def test_a_finished_stage_does_nothing_and_a_changed_rule_decides_anew(tmp_path: Path) -> None:
    first = both(tmp_path, painter=PaintedGenerator(FAULTS))
    painter = PaintedGenerator(FAULTS)
    assert both(tmp_path, painter=painter) == first
    assert both(tmp_path, "train.steps=5", painter=painter) == first
    assert painter.made == []
    lenient = both(tmp_path, "curate.min_sharpness=0", "curate.min_contrast=0", painter=painter)
    assert painter.made == [], "everything that could be wanted is still there"
    assert reasons(lenient) == {"031.0": ["duplicate"]}
    assert lenient.accepted[2].attempt == lenient.accepted[9].attempt == 0
    record = read_record(tmp_path / "images" / "zoë_van_dijk_010.png")
    assert record is not None
    assert record.attempt == 0
    strict = both(tmp_path, painter=painter)
    assert painter.made == []
    assert strict.model_copy(update={"seconds": 0}) == first.model_copy(update={"seconds": 0})


@pytest.mark.parametrize("stop", range(5))
def test_it_goes_on_where_the_generator_stopped(tmp_path: Path, made: Path, stop: int) -> None:
    shutil.copytree(made / "generated", tmp_path / "broken")
    run = make_run(tmp_path / "broken")
    broken = PaintedGenerator(FAULTS, breaks_after=stop)
    if stop < 4:
        with pytest.raises(BackendError):
            curate.run(run, PaintedPorts(broken), quiet)
        assert not (tmp_path / "broken" / "curation.json").exists()
    both(tmp_path / "broken", painter=PaintedGenerator(FAULTS))
    assert tree(tmp_path / "broken") == tree(made / "whole")


@pytest.mark.parametrize("moves", range(7))
def test_a_stop_between_two_moves_does_no_harm(
    tmp_path: Path, made: Path, moves: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(made / "generated", tmp_path / "broken")
    run = make_run(tmp_path / "broken")
    real, left = storage.move_file, [moves]

    def stopping(source: Path, target: Path) -> Path:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        return real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(selection, "move_file", stopping)
        patch.setattr(training_set, "move_file", stopping)
        with pytest.raises(KeyboardInterrupt):
            curate.run(run, PaintedPorts(PaintedGenerator(FAULTS)), quiet)
    painter = PaintedGenerator(FAULTS)
    both(tmp_path / "broken", painter=painter)
    assert tree(tmp_path / "broken") == tree(made / "whole")
    assert painter.made == [], "no picture is lost by the stop"


def test_a_new_plan_takes_the_old_rejects_out_of_the_way(tmp_path: Path) -> None:
    both(tmp_path, painter=PaintedGenerator(FAULTS))
    result = both(tmp_path, "seed=7", painter=PaintedGenerator({"003.0": "blank"}))
    assert [path.name for path in (tmp_path / "rejected").iterdir()] == ["zoë_van_dijk_003_attempt1.png"]
    assert len(list((tmp_path / "images.previous-1" / "rejected").iterdir())) == 4
    assert len(list((tmp_path / "images.previous-1").glob("*.png"))) == 40
    assert reasons(result) == {"003.0": ["blank"]}


def test_coverage_counts_every_word(tmp_path: Path) -> None:
    result = both(tmp_path, "generate.images=10", painter=PaintedGenerator({"003.0": "blank"}))
    shots = make_run(tmp_path).recipe.shots
    assert [axis.axis for axis in result.coverage] == list(AXES)
    for axis in result.coverage:
        assert set(axis.counts) == set(shots.axis(axis.axis))
        assert axis.missing == tuple(word for word in shots.axis(axis.axis) if not axis.counts[word])
        if axis.axis != "expression":
            assert sum(axis.counts.values()) == 10
    assert len(result.coverage[0].missing) == 1, "eleven poses, ten pictures"


class Counted:
    """A detector that finds as many faces in every picture."""

    def __init__(self, faces: int) -> None:
        self.faces = faces

    def find(self, images: Sequence[Image.Image]) -> list[list[Box]]:
        return [[Box(0, 0, 9, 9)] * self.faces] * len(images)


@pytest.mark.parametrize(
    ("faces", "shows_face", "rejected"),
    [
        (0, True, True),
        (0, False, False),
        (1, True, False),
        (1, False, False),
        (2, True, True),
        (2, False, True),
    ],
)
def test_one_face_is_looked_for_and_none_where_the_shot_shows_none(
    tmp_path: Path, faces: int, shows_face: bool, rejected: bool
) -> None:
    paint(1, (64, 64)).save(tmp_path / "a.png")
    rules = make_run(tmp_path).recipe.curate
    judged = quality.QualityFilter(rules, (64, 64), detector=Counted(faces))
    measures, reasons = judged.look(tmp_path / "a.png", (0, 0), shows_face)
    assert measures.subjects == faces
    assert [reason.code for reason in reasons] == (["subjects"] if rejected else [])


class Turning:
    """An embedder that sees somebody else in every picture, or always the same person."""

    same = 0.5

    def __init__(self, turns: bool) -> None:
        self.turns, self.seen = turns, 0

    def embed(self, images: Sequence[Image.Image]) -> np.ndarray:
        self.seen += self.turns
        return np.eye(4, dtype=np.float32)[[self.seen] * len(images)]


@pytest.mark.parametrize("other_person", [False, True])
def test_pictures_that_look_alike_are_no_duplicates_where_they_show_somebody_else(
    tmp_path: Path, other_person: bool
) -> None:
    image = paint(1, (64, 64))
    image.save(tmp_path / "a.png")
    image.putpixel((3, 3), (9, 9, 9))
    image.save(tmp_path / "b.png")
    rules = make_run(tmp_path).recipe.curate
    judged = quality.QualityFilter(rules, (64, 64), embedder=Turning(other_person))
    assert judged.look(tmp_path / "a.png", (0, 0))[1] == ()
    codes = [reason.code for reason in judged.look(tmp_path / "b.png", (1, 0))[1]]
    assert codes == ([] if other_person else ["duplicate"])


class CornerTagger:
    """Sees whether a picture's first pixel is rather red and rather green; eyes it never sees."""

    reads = 0

    def understand(self, tags: Iterable[str]) -> list[Trait]:
        known = {
            "red dress": Trait("red", "yes"),
            "green hat": Trait("green", "yes"),
            "blue eyes": Trait("eyes", "blue"),
        }
        return [known[tag] for tag in tags if tag in known]

    def read(self, images: Sequence[Image.Image]) -> list[dict[str, str]]:
        rows = []
        for image in images:
            red, green, _ = image.getpixel((0, 0))  # type: ignore[misc]
            rows.append({"red": "yes" if red >= 100 else "no", "green": "yes" if green >= 100 else "no"})
        return rows


def test_the_trait_check_counts_what_can_be_seen(tmp_path: Path) -> None:
    settings = ("curate.check_traits=true", "curate.min_traits=0.6", "curate.budget=4")
    run = make_run(tmp_path, *settings, description="1girl, red dress, green hat, blue eyes")
    ports = PaintedPorts(tagger=CornerTagger())
    generate.run(run, ports, quiet)
    told: list[ProgressEvent] = []
    result = curate.run(run, ports, told.append)
    assert len(result.rejected) > 10
    for verdict in (*result.accepted, *result.rejected):
        pixel = Image.open(tmp_path / verdict.file).convert("RGB").getpixel((0, 0))
        assert isinstance(pixel, tuple)
        right = (pixel[0] >= 100) + (pixel[1] >= 100)
        assert (verdict.measures.traits_right, verdict.measures.traits_seen) == (right, 2)
        assert verdict.accepted == (right == 2) or verdict.reasons
    assert "shows 1 of 2 described traits that can be seen" in {
        reason.text for verdict in result.rejected for reason in verdict.reasons
    }
    assert any("rejected: shows" in event.message for event in told)
    unchecked = curate.run(make_run(tmp_path, description=run.character.description), PaintedPorts(), quiet)
    assert unchecked.rejected == ()


def test_the_trait_check_needs_an_instrument(tmp_path: Path) -> None:
    run = make_run(tmp_path, "curate.check_traits=true")
    generate.run(run, PaintedPorts(), quiet)
    with pytest.raises(InputError, match=r"model\.tagger"):
        curate.run(run, PaintedPorts(), quiet)


def test_the_same_seed_gives_the_same_decision(tmp_path: Path) -> None:
    sharpness = [verdict.measures.sharpness or 0 for verdict in both(tmp_path / "all").accepted]
    middle = f"curate.min_sharpness={statistics.median(sharpness)}"
    one, two = both(tmp_path / "one", middle), both(tmp_path / "two", middle)
    assert tree(tmp_path / "one") == tree(tmp_path / "two")
    assert reasons(one) == reasons(two)
    assert len(one.rejected) >= 20, "half of the first attempts, by the median"
