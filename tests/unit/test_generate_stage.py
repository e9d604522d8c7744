"""The generate stage: forty pictures exactly as planned, whatever happened before, and nobody's picture
lost."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lora_foundry.domain.dataset import GenerationMetadata, ImageRequest, PictureRecord
from lora_foundry.domain.picture_plan import plan_pictures
from lora_foundry.domain.run import ProgressEvent
from lora_foundry.errors import BackendError, InputError, StorageError
from lora_foundry.files.hashing import file_hash
from lora_foundry.files.images import read_record, save_picture
from lora_foundry.files.storage import read_model
from lora_foundry.ports import GeneratedImage
from lora_foundry.stages._shared import drawing
from lora_foundry.stages.generate import step as generate
from tests.painted import PaintedGenerator, PaintedPorts, make_run, paint, quiet, tree


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_forty_pictures_with_their_records(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    events: list[ProgressEvent] = []
    result = generate.run(run, PaintedPorts(), events.append)
    assert names(tmp_path / "images") == [f"zoë_van_dijk_{number:03d}.png" for number in range(1, 41)]
    plan = plan_pictures(run.character, run.recipe, "painted [0]")
    for index, picture in enumerate(result.pictures):
        path = tmp_path / "images" / picture.file
        assert picture == plan.record(index).model_copy(update={"sha256": file_hash(path)})
        assert read_record(path) == plan.record(index)
        with Image.open(path) as image:
            assert image.convert("RGB").tobytes() == paint(picture.request.seed, (64, 64)).tobytes()
    assert read_model(tmp_path / "generation_metadata.json", GenerationMetadata) == result
    assert [event.done for event in events] == list(range(41))
    assert all(event.total == 40 and event.stage == "generate" for event in events)


def test_a_finished_stage_does_nothing(tmp_path: Path) -> None:
    first = generate.run(make_run(tmp_path), PaintedPorts(), quiet)
    painter = PaintedGenerator()
    later = make_run(tmp_path, "train.steps=9", "evaluate.seeds=1")
    assert generate.run(later, PaintedPorts(painter), quiet) == first
    assert painter.made == []


@pytest.mark.parametrize("broken_after", [0, 1, 7, 8, 13, 39])
def test_it_goes_on_where_the_generator_stopped(tmp_path: Path, broken_after: int) -> None:
    generate.run(make_run(tmp_path / "whole"), PaintedPorts(), quiet)
    broken = PaintedGenerator(breaks_after=broken_after)
    with pytest.raises(BackendError):
        generate.run(make_run(tmp_path / "broken"), PaintedPorts(broken), quiet)
    there = len(names(tmp_path / "broken" / "images"))
    assert there == broken_after
    assert not (tmp_path / "broken" / "generation_metadata.json").exists()
    painter = PaintedGenerator()
    generate.run(make_run(tmp_path / "broken"), PaintedPorts(painter), quiet)
    assert tree(tmp_path / "whole") == tree(tmp_path / "broken")
    assert len(painter.made) == 40 - there // 8 * 8, "a batch that was not complete is made again as a whole"


def test_batches_are_fixed_slices_of_the_plan(tmp_path: Path) -> None:
    generate.run(make_run(tmp_path, "generate.batch_size=16"), PaintedPorts(), quiet)
    for number in (3, 20):
        (tmp_path / "images" / f"zoë_van_dijk_{number:03d}.png").unlink()
    kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "images").iterdir()}
    painter = PaintedGenerator()
    generate.run(make_run(tmp_path, "generate.batch_size=16"), PaintedPorts(painter), quiet)
    assert painter.batches == [[f"{n:03d}.0" for n in range(1, 17)], [f"{n:03d}.0" for n in range(17, 33)]]
    now = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "images").iterdir()}
    untouched = {name: stamp for name, stamp in now.items() if name in kept}
    assert untouched == kept, "pictures that are whole are not written again"


def test_a_batch_is_on_the_disk_before_the_next_is_begun(tmp_path: Path) -> None:
    there: list[int] = []

    class Watching(PaintedGenerator):
        def generate(
            self, batches: Iterable[Sequence[ImageRequest]], *others: Any
        ) -> Iterator[GeneratedImage]:
            for batch in batches:
                there.append(len(names(tmp_path / "images")))
                yield from super().generate([batch], *others)

    generate.run(make_run(tmp_path, "generate.batch_size=16"), PaintedPorts(Watching()), quiet)
    assert there == [0, 16, 32]


def test_a_picture_that_cannot_be_written_ends_the_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def save(path: Path, *others: Any) -> PictureRecord:
        if path.name.endswith("_005.png"):
            raise StorageError("The disk is full.")
        return save_picture(path, *others)

    monkeypatch.setattr(drawing, "save_picture", save)
    painter = PaintedGenerator()
    with pytest.raises(StorageError, match="The disk is full"):
        generate.run(make_run(tmp_path), PaintedPorts(painter), quiet)
    assert len(painter.batches) == 1
    # The fault may be heard of before the rest of its batch has come, or after.
    whole = [f"zoë_van_dijk_{number:03d}.png" for number in (1, 2, 3, 4, 6, 7, 8)]
    kept = names(tmp_path / "images")
    assert set(whole[:4]) <= set(kept) <= set(whole)


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "pixels"])
def test_a_damaged_picture_is_made_again(tmp_path: Path, damage: str) -> None:
    generate.run(make_run(tmp_path), PaintedPorts(), quiet)
    whole = tree(tmp_path)
    victim = tmp_path / "images" / "zoë_van_dijk_012.png"
    data = victim.read_bytes()
    middle = len(data) // 2
    harmed = {"cut": data[:-40], "empty": b"", "text": b"no picture",
              "pixels": data[:middle] + bytes(20) + data[middle + 20 :]}  # fmt: skip
    victim.write_bytes(harmed[damage])
    generate.run(make_run(tmp_path), PaintedPorts(), quiet)
    assert tree(tmp_path) == whole


def test_leftovers_of_a_kill_are_swept(tmp_path: Path) -> None:
    generate.run(make_run(tmp_path), PaintedPorts(), quiet)
    whole = tree(tmp_path)
    (tmp_path / "images" / ".zoë_van_dijk_003.4711.part.png").write_bytes(b"half")
    (tmp_path / ".generation_metadata.4711.part.json").write_bytes(b"{")
    generate.run(make_run(tmp_path), PaintedPorts(), quiet)
    assert tree(tmp_path) == whole


def test_pictures_of_another_plan_are_kept_aside(tmp_path: Path) -> None:
    generate.run(make_run(tmp_path, description="1girl, red hair"), PaintedPorts(), quiet)
    (tmp_path / "images" / "zoë_van_dijk_002.txt").write_text("my own caption")
    (tmp_path / "images" / "a photo of mine.png").write_bytes(b"mine")
    older = tree(tmp_path / "images")
    events: list[ProgressEvent] = []
    generate.run(make_run(tmp_path, description="1boy, blue hair"), PaintedPorts(), events.append)
    mine = older.pop("a photo of mine.png")
    assert tree(tmp_path / "images.previous-1") == older
    assert (tmp_path / "images" / "a photo of mine.png").read_bytes() == mine
    told = [event.message for event in events if event.message]
    assert told == ["40 older pictures of another description, recipe or size moved to images.previous-1"]

    fewer = make_run(tmp_path, "generate.images=8", description="1boy, blue hair")
    generate.run(fewer, PaintedPorts(), quiet)
    assert len(names(tmp_path / "images.previous-2")) == 40
    assert len(list((tmp_path / "images").glob("zoë_*.png"))) == 8


def test_a_picture_that_a_person_put_there_is_never_moved_or_written_over(tmp_path: Path) -> None:
    generate.run(make_run(tmp_path), PaintedPorts(), quiet)
    mine = tmp_path / "images" / "zoë_van_dijk_005.png"
    paint(99, (64, 64)).save(mine)
    whole = tree(tmp_path)
    with pytest.raises(InputError, match=r"zoë_van_dijk_005\.png was not made here.*another name"):
        generate.run(make_run(tmp_path), PaintedPorts(), quiet)
    with pytest.raises(InputError, match="was not made here"):
        generate.run(make_run(tmp_path, description="1boy, blue hair"), PaintedPorts(), quiet)
    assert tree(tmp_path) == whole
    mine.rename(mine.with_name("my own.png"))
    generate.run(make_run(tmp_path), PaintedPorts(), quiet)
    assert mine.with_name("my own.png").read_bytes() == whole["images/zoë_van_dijk_005.png"]


def test_another_trigger_keeps_the_pictures_and_tells_the_truth(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    generate.run(run, PaintedPorts(), quiet)
    pictures = tree(tmp_path / "images")
    painter = PaintedGenerator()
    character = run.character.model_copy(update={"trigger": "zoevd"})
    result = generate.run(run.model_copy(update={"character": character}), PaintedPorts(painter), quiet)
    assert result.trigger == "zoevd"
    assert read_model(tmp_path / "generation_metadata.json", GenerationMetadata) == result
    assert painter.made == []
    assert tree(tmp_path / "images") == pictures


def test_random_losses_always_end_in_the_same_files(tmp_path: Path) -> None:
    settings = ("generate.images=11", "generate.batch_size=3")
    generate.run(make_run(tmp_path, *settings), PaintedPorts(), quiet)
    whole = tree(tmp_path)
    rng = random.Random(5)
    for _ in range(12):
        for path in rng.sample(sorted((tmp_path / "images").iterdir()), rng.randrange(1, 8)):
            path.unlink() if rng.random() < 0.5 else path.write_bytes(path.read_bytes()[: rng.randrange(900)])
        if rng.random() < 0.5:
            (tmp_path / "generation_metadata.json").unlink()
        generate.run(make_run(tmp_path, *settings), PaintedPorts(), quiet)
        assert tree(tmp_path) == whole


class SmallPainter(PaintedGenerator):
    def generate(self, batches, lora=None, reference=None):  # type: ignore[no-untyped-def]
        for made in super().generate(batches, lora):
            yield made._replace(image=made.image.resize((32, 32)))


class LazyPainter(PaintedGenerator):
    def generate(self, batches, lora=None, reference=None):  # type: ignore[no-untyped-def]
        yield from list(super().generate(batches, lora))[:-1]


@pytest.mark.parametrize(
    ("painter", "says"), [(SmallPainter(), "32x32 instead of 64x64"), (LazyPainter(), "left out 1")]
)
def test_a_generator_that_breaks_its_promise_is_found_out(
    tmp_path: Path, painter: PaintedGenerator, says: str
) -> None:
    with pytest.raises(BackendError, match=says):
        generate.run(make_run(tmp_path), PaintedPorts(painter), quiet)
    assert not (tmp_path / "generation_metadata.json").exists()
