"""What a reference image is beside what pictures are drawn after: a picture of the set, and a teller of traits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image

from lora_foundry import Foundry, pipeline
from lora_foundry.backends.plan_captions import PlanCaptioner
from lora_foundry.domain.cast import Member
from lora_foundry.domain.character import Character
from lora_foundry.domain.dataset import PictureRecord, TaggingResults
from lora_foundry.domain.run import Run
from lora_foundry.errors import InputError
from lora_foundry.files.images import read_record
from lora_foundry.files.paths import RunPaths
from lora_foundry.files.storage import read_model
from lora_foundry.files.training_set import list_set, read_set
from lora_foundry.stages.caption import step as caption
from lora_foundry.stages.curate import step as curate
from lora_foundry.stages.generate import step as generate
from tests.painted import PaintedPorts, make_run, quiet

FEW = ("generate.images=4", "curate.identity=false")


class Eye:
    """Sees the same in every picture."""

    def __init__(self, *tags: str) -> None:
        self.tags = list(tags)

    def describe(
        self, character: Character, pictures: Sequence[PictureRecord], folder: Path
    ) -> list[list[str]]:
        assert all((folder / picture.file).is_file() for picture in pictures)
        return [self.tags for _ in pictures]


def after(run: Run, picture: Path | None, description: str = "1girl, brown hair") -> Run:
    character = Character(name="Elara", description=description, reference_image=picture)
    return Run.model_validate(run.model_dump() | {"character": character.model_dump()})


def plain(folder: Path, colour: str) -> Path:
    path = folder / f"{colour}.png"
    Image.new("RGB", (64, 64), colour).save(path)
    return path


def references(paths: RunPaths) -> list[str]:
    return [picture.name for picture in list_set(paths).pictures if picture.reference]


def test_the_reference_is_a_picture_of_the_set_and_nobodys_own(tmp_path: Path) -> None:
    run = after(make_run(tmp_path / "set", *FEW), plain(tmp_path, "red"))
    paths, ports = RunPaths(run.dataset_dir, run.character.slug), PaintedPorts()
    generate.run(run, ports, quiet)
    result = curate.run(run, ports, quiet)
    ports.captioner = Eye()
    caption.run(run, ports, quiet)
    assert references(paths) == ["elara_reference.png"]
    assert len(read_set(paths).pictures) == 5
    assert result.own == ()
    assert not paths.triage.exists()
    told = read_model(paths.tagging_results, TaggingResults)
    assert told is not None
    assert "elara_reference.png" in {each.file for each in told.captions}


def test_another_reference_takes_its_place_and_none_leaves_none(tmp_path: Path) -> None:
    run = make_run(tmp_path / "set", *FEW)
    paths = RunPaths(run.dataset_dir, "elara")
    for colour in ("red", "blue"):
        generate.run(after(run, plain(tmp_path, colour)), PaintedPorts(), quiet)
        assert references(paths) == ["elara_reference.png"]
        with Image.open(paths.reference_in_set) as shown:
            assert shown.getpixel((3, 3)) == Image.new("RGB", (1, 1), colour).getpixel((0, 0))
    generate.run(after(run, None), PaintedPorts(), quiet)
    assert not paths.reference_in_set.exists()


def test_a_persons_file_of_that_name_stays_as_it_is(tmp_path: Path) -> None:
    run = make_run(tmp_path / "set", *FEW)
    paths = RunPaths(run.dataset_dir, "elara")
    paths.images.mkdir(parents=True)
    Image.new("RGB", (80, 80), "green").save(paths.reference_in_set)
    before = paths.reference_in_set.read_bytes()
    for picture in (plain(tmp_path, "red"), plain(tmp_path, "blue"), None):
        generate.run(after(run, picture), PaintedPorts(), quiet)
        assert paths.reference_in_set.read_bytes() == before
        assert [each.name for each in list_set(paths).own] == ["elara_reference.png"]


def test_what_the_reference_shows_completes_the_description_before_anything_is_drawn(tmp_path: Path) -> None:
    run = after(make_run(tmp_path / "set", *FEW), plain(tmp_path, "red"), "1girl, blue hair")
    ports = PaintedPorts()
    ports.captioners = (Eye("green hair", "purple eyes", "yellow hoodie", "smile"),)
    made = pipeline.generate(run, ports, quiet)
    record = read_record(RunPaths(run.dataset_dir, "elara").images / made.pictures[0].file)
    assert record is not None
    prompt = record.request.prompt
    assert prompt.startswith("1girl, blue hair, purple eyes, yellow hoodie, ")
    assert "green hair" not in prompt, "what was said in words counts"


def test_the_trigger_stands_for_all_that_the_description_was_completed_with(tmp_path: Path) -> None:
    """An accessory as well, which captions name where nobody said that it is the character's."""
    run = after(make_run(tmp_path / "set", *FEW), plain(tmp_path, "red"), "")
    ports = PaintedPorts()
    ports.captioner, ports.captioners = PlanCaptioner(), (Eye("bob cut", "crown", "purple eyes"),)
    made = pipeline.generate(run, ports, quiet)
    assert {"bob cut", "crown"} <= set(made.completed)
    curate.run(run, ports, quiet)
    for each in caption.run(run, ports, quiet).captions:
        assert each.text.startswith("elara, ")
        assert not {"bob cut", "crown", "purple eyes"} & set(each.text.split(", "))


def test_a_picture_needs_no_words_and_neither_is_nobody(tmp_path: Path) -> None:
    run = make_run(tmp_path / "set", *FEW)
    shown = after(run, plain(tmp_path, "red"), description="")
    ports = PaintedPorts()
    ports.captioners = (Eye("purple eyes"),)
    made = pipeline.generate(shown, ports, quiet)
    assert made.pictures[0].request.prompt.startswith("purple eyes, ")
    with pytest.raises(InputError, match="--reference"):
        after(run, None, description="")


@pytest.mark.parametrize(("name", "content"), [("empty.png", b""), ("words.jpg", b"no picture, only words")])
def test_a_reference_that_is_no_picture_is_refused_before_anything_is_written(
    tmp_path: Path, name: str, content: bytes
) -> None:
    (tmp_path / name).write_bytes(content)
    foundry, shown = Foundry(tmp_path / "home"), Character(name="Elara", reference_image=tmp_path / name)
    with pytest.raises(InputError, match="is not a picture that can be read") as alone:
        foundry.prepare(shown, "mini")
    members = [Member(character=each) for each in (Character(name="Kai", description="1boy"), shown)]
    with pytest.raises(InputError, match="is not a picture that can be read") as in_a_cast:
        foundry.prepare(Character(name="Duo"), "mini", members=members)
    for refused in (alone, in_a_cast):
        assert str(refused.value).startswith(f"The reference image {tmp_path / name} ")
    assert not (tmp_path / "home").exists()


def test_a_reference_that_has_gone_since_it_was_taken_in_is_not_missed(tmp_path: Path) -> None:
    character = Character(name="Elara", reference_image=plain(tmp_path, "red"))
    run, _ = Foundry(tmp_path / "home").prepare(character, "mini")
    generate.run(after(make_run(run.dataset_dir, *FEW), character.reference_image), PaintedPorts(), quiet)
    (tmp_path / "red.png").unlink()
    assert Foundry(tmp_path / "home").prepare(character, "mini")[0] == run
    with pytest.raises(InputError, match="is not there"):
        Foundry(tmp_path / "elsewhere").prepare(character, "mini")
