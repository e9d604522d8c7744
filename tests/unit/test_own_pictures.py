"""Own pictures as a job of their own: copied and never changed, looked at before the training, captioned, and nothing
drawn for them."""

from __future__ import annotations

import sys
import zipfile
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from PIL import Image, ImageFilter

from lora_foundry import Character, Foundry, pipeline
from lora_foundry.backends.plan_captions import PlanCaptioner
from lora_foundry.domain.dataset import TaggingResults
from lora_foundry.domain.exclusion import Exclusion, Exclusions
from lora_foundry.domain.run import ProgressEvent, Run
from lora_foundry.domain.triage import FindingCode, Triage
from lora_foundry.errors import InputError, StorageError
from lora_foundry.files import importing
from lora_foundry.files.hashing import file_hash
from lora_foundry.files.importing import import_pictures
from lora_foundry.files.paths import RunPaths
from lora_foundry.files.storage import make_folder, read_model, require_model, write_model
from lora_foundry.files.training_set import list_set
from lora_foundry.ports import Box, FloatArray
from lora_foundry.stages.caption import step as caption
from lora_foundry.stages.curate import step as curate
from lora_foundry.stages.curate import triage
from lora_foundry.stages.train.step import collect_images
from tests.painted import PaintedPorts, make_run, paint, quiet, tree


def own_run(folder: Path, *settings: str) -> Run:
    return make_run(folder, "dataset.source=own", "curate.min_sharpness=0", *settings)


def album(folder: Path, count: int = 12) -> Path:
    folder.mkdir(parents=True)
    for number in range(count):
        paint(number, (80, 64)).save(folder / f"p{number:02d}.png")
    return folder


class Faces:
    """Sees two faces in pictures that are wider than high by much."""

    def find(self, images: Sequence[Image.Image]) -> list[list[Box]]:
        return [[Box(0, 0, 9, 9)] * (2 if image.width > 1.8 * image.height else 1) for image in images]


class Eye:
    """Takes pictures with a red corner for somebody else's."""

    same = 0.8

    def embed(self, images: Sequence[Image.Image]) -> FloatArray:
        rows = [[0.0, 1.0] if image.getpixel((0, 0)) == (255, 0, 0) else [1.0, 0.0] for image in images]
        return np.array(rows, np.float32)


class OwnPorts(PaintedPorts):
    """What a set of own pictures needs, and no generator."""

    def __init__(self) -> None:
        super().__init__()
        del self.generator
        self.detector, self.embedder = Faces(), Eye()  # type: ignore[assignment]
        self.captioner = PlanCaptioner()


def test_a_folder_is_copied_with_what_belongs_to_it_and_only_once(tmp_path: Path) -> None:
    source = album(tmp_path / "photos", 3)
    (source / "p00.caption").write_text("words")
    (source / "p01.png.txt").write_text("more words")
    Image.new("L", (80, 64), 255).save(source / "p02-masklabel.png")
    (source / "10_close").mkdir()
    paint(9, (64, 64)).save(source / "10_close" / "near.jpg")
    (source / ".hidden.png").write_bytes(b"x")
    before = tree(source)
    paths = RunPaths(tmp_path / "set", "zoë_van_dijk")
    done = import_pictures([source], paths)
    assert (done.copied, done.present) == (4, 0)
    whole = tree(paths.images)
    assert set(whole) == {"p00.png", "p00.caption", "p01.png", "p01.png.txt", "p02.png", "p02-masklabel.png",
                          "10_close/near.jpg"}  # fmt: skip
    assert import_pictures([source], paths).present == 4
    assert tree(paths.images) == whole
    assert tree(source) == before, "where they come from nothing is changed"
    assert not (paths.images / "p00.png").samefile(source / "p00.png"), "a copy, not a second name"


def test_names_that_are_taken_get_a_number(tmp_path: Path) -> None:
    first, second = album(tmp_path / "a", 1), tmp_path / "b"
    second.mkdir()
    paint(50, (64, 64)).save(second / "p00.png")
    (second / "p00.txt").write_text("the second")
    paint(51, (64, 64)).save(second / "zoë_van_dijk_001.png")
    paths = RunPaths(tmp_path / "set", "zoë_van_dijk")
    assert import_pictures([first, second], paths).copied == 3
    assert set(tree(paths.images)) == {"p00.png", "p00-2.png", "p00-2.txt", "zoë_van_dijk_001-2.png"}


def packed(path: Path, names: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in names.items():
            archive.writestr(name, data)
    return path


def test_a_zip_file_is_unpacked_and_nothing_leads_out_of_it(tmp_path: Path) -> None:
    data = (album(tmp_path / "a", 1) / "p00.png").read_bytes()
    paths = RunPaths(tmp_path / "set", "zoë")
    good = packed(
        tmp_path / "good.zip",
        {"in/p.png": data, "in/p.txt": b"words", "__MACOSX/._p.png": b"x", "run.exe": b"x"},
    )
    assert import_pictures([good], paths).copied == 1
    assert set(tree(paths.images)) == {"in/p.png", "in/p.txt"}
    for name in ("../out.png", "/abs.png", "a\\..\\..\\b.png"):
        with pytest.raises(InputError, match="leads out of it"):
            import_pictures([packed(tmp_path / "bad.zip", {name: data})], paths)
    (tmp_path / "broken.zip").write_bytes(good.read_bytes()[:-30])
    for source, words in ((tmp_path / "broken.zip", "neither"), (tmp_path / "none", "not there")):
        with pytest.raises(InputError, match=words):
            import_pictures([source], paths)
    with pytest.raises(InputError, match="no picture"):
        import_pictures([packed(tmp_path / "empty.zip", {"a.txt": b"x"})], paths)


@pytest.mark.parametrize(
    "kind", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]
)
def test_a_zip_file_damaged_inside_is_one_sentence(tmp_path: Path, kind: int) -> None:
    """Each compression has an error of its own for it."""
    path, data = tmp_path / "damaged.zip", (album(tmp_path / "a", 1) / "p00.png").read_bytes()
    with zipfile.ZipFile(path, "w", kind) as archive:
        archive.writestr("p.png", data)
    whole = path.read_bytes()
    for place in range(40, len(whole) - 150, 97):
        path.write_bytes(
            whole[:place] + bytes(255 - byte for byte in whole[place : place + 30]) + whole[place + 30 :]
        )
        with pytest.raises(InputError, match="cannot be read"):
            import_pictures([path], RunPaths(tmp_path / "set", "zoë"))


def test_a_zip_file_with_a_password_is_told_from_a_damaged_one(tmp_path: Path) -> None:
    path = packed(tmp_path / "secret.zip", {"p.png": b"x" * 50})
    data = bytearray(path.read_bytes())
    for mark, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(mark) + flags] |= 1  # says that the member is encrypted
    path.write_bytes(data)
    with pytest.raises(InputError, match="without one"):
        import_pictures([path], RunPaths(tmp_path / "set", "zoë"))


def test_a_full_disk_is_not_the_zip_files_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = packed(tmp_path / "good.zip", {"p.png": (album(tmp_path / "a", 1) / "p00.png").read_bytes()})
    monkeypatch.setattr(importing, "TemporaryDirectory", lambda prefix: FullDisk(tmp_path / "temporary"))
    with pytest.raises(StorageError, match="full"):
        import_pictures([path], RunPaths(tmp_path / "set", "zoë"))


class FullDisk:
    """A temporary folder in which every file is /dev/full."""

    def __init__(self, place: Path) -> None:
        self._place = place

    def __enter__(self) -> str:
        self._place.mkdir()
        (self._place / "p.png").symlink_to("/dev/full")
        return str(self._place)

    def __exit__(self, *error: object) -> None:
        (self._place / "p.png").unlink()


def test_ten_planted_faults_are_reported_and_nothing_is_thrown_out(tmp_path: Path) -> None:
    run = own_run(tmp_path / "set", "train.resolution=128", "model.detector=yunet")
    paths = RunPaths(run.dataset_dir, run.character.slug)
    source = album(tmp_path / "photos")
    (source / "cut.png").write_bytes((source / "p01.png").read_bytes()[:300])
    paint(60, (40, 40)).save(source / "small.png")
    paint(61, (80, 64)).filter(ImageFilter.GaussianBlur(9)).save(source / "blurred.png")
    Image.new("RGB", (80, 64), "grey").save(source / "blank.png")
    Image.open(source / "p03.png").save(source / "twin.jpg", quality=92)
    paint(62, (160, 64)).save(source / "two.png")
    stranger = paint(63, (80, 64))
    stranger.putpixel((0, 0), (255, 0, 0))
    stranger.save(source / "stranger.png")
    (source / "p04.txt").write_text("1girl, smile")
    (source / "p05.txt").write_bytes(bytes([0, 1, 0, 0, 255, 0]))
    (source / "drawing.svg").write_text("<svg/>")
    imported = import_pictures([source], paths)
    assert [each.name for each in imported.left_out] == ["drawing.svg"]
    (paths.images / "put there by hand.svg").write_text("<svg/>")
    before = tree(paths.images)
    told: list[str] = []
    pipeline.generate(run, OwnPorts(), quiet)
    curate.run(run, OwnPorts(), lambda event: told.append(event.message))
    triage = require_model(paths.triage, Triage, "curate")
    found = {each.name: {one.code for one in each.findings} - {"caption_missing"} for each in triage.pictures}
    expected = {"cut.png": "unreadable", "small.png": "too_small", "blurred.png": "blurred", "blank.png": "blank",
                "two.png": "several_people", "stranger.png": "other_person", "p04.png": "trigger_missing",
                "p05.png": "caption_foreign"}  # fmt: skip
    assert all(code in found[name] for name, code in expected.items()), found
    twins = [each for each in triage.pictures if any(one.code == "near_duplicate" for one in each.findings)]
    assert [each.name for each in twins] == ["twin.jpg"]
    assert twins[0].findings[0].other == "p03.png"
    assert [name for name, _ in triage.left_out] == ["put there by hand.svg"]
    clean = {f"p{number:02d}.png" for number in range(12)} - {"p04.png", "p05.png"}
    assert not [name for name in clean if found[name]], found
    assert tree(paths.images) == before
    text = paths.triage_report.read_text(encoding="utf-8")
    assert all(name in text for name in expected)
    assert text.count("<img") >= 8
    assert any("by hand.svg" in each for each in told)
    assert any("stranger.png" in each for each in told)


def test_own_pictures_are_captioned_and_trained_and_nothing_is_drawn(tmp_path: Path) -> None:
    run = own_run(tmp_path / "set")
    paths = RunPaths(run.dataset_dir, run.character.slug)
    source = album(tmp_path / "photos", 6)
    (source / "p00.txt").write_text("1girl, waving")
    (source / "p01.png").write_bytes(b"broken")
    import_pictures([source], paths)
    ports = OwnPorts()
    made = pipeline.generate(run, ports, quiet)
    assert made.pictures == ()
    result = curate.run(run, ports, quiet)
    assert (result.wanted, len(result.own)) == (0, 6)
    tagged = caption.run(run, ports, quiet)
    trained = {image.path.name: image.caption for image in collect_images(run, paths, tagged)}
    trigger = run.character.trigger
    assert set(trained) == {"p00.png", "p02.png", "p03.png", "p04.png", "p05.png"}, (
        "what cannot be read is left out"
    )
    assert trained["p00.png"] == f"{trigger}, 1girl, waving"
    assert all(text.startswith(trigger) for text in trained.values())
    assert (paths.images / "p00.txt").read_text() == "1girl, waving"
    as_written = own_run(tmp_path / "set", "caption.kept=as_written")
    assert {image.caption for image in collect_images(as_written, paths, tagged)} >= {"1girl, waving"}


def test_a_changed_trigger_takes_the_place_of_the_old_one(tmp_path: Path) -> None:
    run = own_run(tmp_path / "set")
    paths = RunPaths(run.dataset_dir, run.character.slug)
    source = album(tmp_path / "photos", 2)
    (source / "p00.txt").write_text("zoë van dijk, waving")
    import_pictures([source], paths)
    ports, told = OwnPorts(), list[str]()
    pipeline.generate(run, ports, quiet)
    curate.run(run, ports, quiet)
    caption.run(run, ports, quiet)
    later = run.model_copy(update={"character": run.character.model_copy(update={"trigger": "zvd"})})
    for _ in range(2):  # the second run knows the old word as well as the first
        curate.run(later, ports, lambda event: told.append(event.message))
        tagged = caption.run(later, ports, quiet)
        trained = [image.caption for image in collect_images(later, paths, tagged)]
        assert trained[0] == "zvd, waving"
        assert all(text.startswith("zvd") for text in trained)
    assert any("earlier trigger" in each and "p00.png" in each for each in told)
    assert read_model(paths.tagging_results, TaggingResults).former == ("zoë van dijk",)  # type: ignore[union-attr]


def test_a_set_without_pictures_is_refused(tmp_path: Path) -> None:
    run = own_run(tmp_path / "set")
    with pytest.raises(InputError, match=r"no picture to train on.*--pictures"):
        pipeline.generate(run, OwnPorts(), quiet)


def test_events_count_the_own_pictures(tmp_path: Path) -> None:
    run = own_run(tmp_path / "set")
    import_pictures([album(tmp_path / "photos", 3)], RunPaths(run.dataset_dir, run.character.slug))
    events: list[ProgressEvent] = []
    pipeline.generate(run, OwnPorts(), events.append)
    assert [(event.done, event.total) for event in events] == [(3, 3)]


def test_a_single_picture_comes_with_what_belongs_to_it_and_without_its_neighbours(tmp_path: Path) -> None:
    source = album(tmp_path / "photos", 3)
    (source / "p01.txt").write_text("zoë, smiling")
    paths = RunPaths(tmp_path / "set", "zoë")
    assert import_pictures([source / "p01.png"], paths).copied == 1
    assert set(tree(paths.images)) == {"p01.png", "p01.txt"}
    (source / "words.txt").write_text("no picture")
    with pytest.raises(InputError, match="neither a folder, a zip file nor a picture"):
        import_pictures([source / "words.txt"], paths)


def test_no_picture_is_given_the_caption_of_another_that_lies_there(tmp_path: Path) -> None:
    paths = RunPaths(tmp_path / "set", "zoë")
    make_folder(paths.images)
    (paths.images / "p00.txt").write_text("words of a picture that has gone")
    source = album(tmp_path / "photos", 1)
    (source / "p00.txt").write_text("its own words")
    assert import_pictures([source], paths).copied == 1
    assert set(tree(paths.images)) == {"p00.txt", "p00-2.png", "p00-2.txt"}
    assert (paths.images / "p00.txt").read_text() == "words of a picture that has gone"
    assert (paths.images / "p00-2.txt").read_text() == "its own words"


def test_an_import_that_was_broken_off_goes_on_under_the_same_names(tmp_path: Path) -> None:
    paths = RunPaths(tmp_path / "set", "zoë")
    source = album(tmp_path / "photos", 2)
    (source / "p00.txt").write_text("its own words")
    make_folder(paths.images)
    (paths.images / "p00.txt").write_text("its own words")  # captions come first
    assert import_pictures([source], paths).copied == 2
    assert set(tree(paths.images)) == {"p00.png", "p00.txt", "p01.png"}


def calls(work: Callable[[], object]) -> int:
    """How many functions are called meanwhile: a measure of work that no busy machine changes."""
    count = 0

    def called(frame: object, event: str, argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(called)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


def test_twice_the_pictures_are_twice_the_work(tmp_path: Path) -> None:
    imported, listed = [], []
    for count in (1, 40, 80):  # the first loads what is loaded once
        source, paths = tmp_path / f"photos-{count}", RunPaths(tmp_path / f"set-{count}", "zoë")
        make_folder(paths.masks)
        source.mkdir()
        paint(0, (64, 64)).save(source / "p000.png")
        for number in range(count):
            if number:
                (source / f"p{number:03d}.png").write_bytes(bytes([number]))
            (source / f"p{number:03d}.txt").write_text("words")
            (source / f"p{number:03d}_mask.png").write_bytes(bytes([number, 1]))
            (paths.masks / f"p{number:03d}.png").write_bytes(bytes([number, 2]))
        imported.append(calls(lambda source=source, paths=paths: import_pictures([source], paths)))  # type: ignore[misc]
        listed.append(calls(lambda paths=paths: list_set(paths)))  # type: ignore[misc]
        assert all(picture.mask and picture.caption for picture in list_set(paths).pictures)
    assert imported[2] < 2.2 * imported[1]
    assert listed[2] < 2.2 * listed[1]


@pytest.mark.parametrize("code", get_args(FindingCode))
def test_one_picture_and_several_are_spoken_of_in_their_own_number(code: FindingCode) -> None:
    one, several = triage._counted(1, code).split(), triage._counted(2, code).split()
    assert one[:2] == ["1", "picture"]
    assert several[:2] == ["2", "pictures"]
    assert not {"are", "have", "get"} & set(one)
    assert not {"is", "has", "gets", "shows"} & set(several)
    assert "may shows" not in " ".join(one)


def test_where_no_picture_can_be_read_nothing_is_copied(tmp_path: Path) -> None:
    paths, empty, photos = RunPaths(tmp_path / "set", "zoë"), tmp_path / "empty.png", tmp_path / "photos"
    empty.touch()
    make_folder(photos)
    (photos / "words.jpg").write_text("no picture")
    (photos / "cut.png").write_bytes((album(tmp_path / "a", 1) / "p00.png").read_bytes()[:-20])
    zipped = packed(tmp_path / "photos.zip", {"in/b.png": b"x"})
    for sources, words in (
        ([empty], f"The only picture cannot be read: {empty} is not a picture"),
        ([photos, empty], f"None of the 3 pictures can be read; the first: {photos / 'cut.png'} is cut off"),
        ([zipped, photos], f"None of the 3 pictures can be read; the first: in/b.png in {zipped} is not a"),
    ):
        with pytest.raises(InputError) as refused:
            import_pictures(sources, paths)
        assert str(refused.value).startswith(words)
        assert tree(paths.images) == {}


def test_pictures_are_read_up_to_the_first_that_can_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others are looked at later; those that cannot be read are left out then."""
    read: list[str] = []
    real = importing.read_picture
    monkeypatch.setattr(
        importing, "read_picture", lambda path, **more: (read.append(path.name), real(path, **more))
    )
    good, zipped = album(tmp_path / "photos", 5), packed(tmp_path / "a.zip", {"b.png": b"x", "c.png": b""})
    (good / "a.png").touch()
    paths = RunPaths(tmp_path / "set", "zoë")
    assert import_pictures([zipped, good, album(tmp_path / "more", 6)], paths).copied == 8 + 1
    assert read == ["b.png", "c.png", "a.png", "p00.png"]
    assert {"a.png", "b.png", "c.png"} < set(tree(paths.images))


def test_a_set_of_which_nothing_can_be_read_says_so_and_not_that_it_was_excluded(tmp_path: Path) -> None:
    run = own_run(tmp_path / "set")
    paths = RunPaths(run.dataset_dir, run.character.slug)
    make_folder(paths.images)
    for name in ("a.png", "b.png"):
        (paths.images / name).write_bytes(b"x")
    ports = OwnPorts()
    pipeline.generate(run, ports, quiet)
    curate.run(run, ports, quiet)
    tagged = caption.run(run, ports, quiet)
    with pytest.raises(InputError) as refused:
        collect_images(run, paths, tagged)
    assert str(refused.value).startswith(f"None of the pictures in {paths.images} can be read; bring others.")
    assert str(paths.images / "a.png") in str(refused.value)
    marks = {
        name: Exclusion(sha256=file_hash(paths.images / name), at=datetime.now(UTC)) for name in ("b.png",)
    }
    write_model(paths.exclusions, Exclusions(files=marks))
    with pytest.raises(InputError, match=r"1 cannot be read, the others are excluded; restore some.*a\.png"):
        collect_images(run, paths, tagged)
    marks["a.png"] = Exclusion(sha256=file_hash(paths.images / "a.png"), at=datetime.now(UTC))
    write_model(paths.exclusions, Exclusions(files=marks))
    with pytest.raises(InputError, match=r"are excluded; restore some\.$"):
        collect_images(run, paths, tagged)


def with_others(folder: Path) -> Path:
    """An album with three files that are no pictures, and with what nobody wants to hear of."""
    album(folder, 2)
    for name in ("inner.zip", "notes.docx", "photo.gif.bak", "p00.txt", "old.caption", "p01_mask.png", ".DS_Store",
                 "Thumbs.db", "desktop.ini", "p00.aae"):  # fmt: skip
        (folder / name).write_bytes(b"x")
    (folder / "masks").mkdir()
    (folder / "masks" / "p00.png").write_bytes(b"x")
    return folder


TOLD = (
    "3 files are no pictures and were left out: inner.zip, notes.docx, photo.gif.bak. inner.zip is not opened there; "
    "unpack it first"
)


def test_what_is_no_picture_is_named_in_one_line(tmp_path: Path) -> None:
    paths, source = RunPaths(tmp_path / "set", "zoë"), with_others(tmp_path / "photos")
    assert import_pictures([source], paths).notes() == [TOLD]
    assert not {"inner.zip", "notes.docx", "photo.gif.bak"} & set(tree(paths.images))
    (paths.images / "made here.bin").touch()
    assert list_set(paths).left_out == (), "only those who bring a folder hear of it"

    zipped = {path.relative_to(source).as_posix(): path.read_bytes() for path in source.rglob("*.*")}
    more = {"__MACOSX/x.bin": b"x", "drawing.svg": b"x", "evil\x1b[2J.exe": b"x"}
    told = import_pictures([packed(tmp_path / "a.zip", zipped | more)], paths).notes()
    assert told[0].startswith("left out: drawing.svg: .svg files are not read")
    assert told[1].startswith("4 files are no pictures and were left out: ")
    assert {"notes.docx", "evil?[2J.exe"} < set(
        told[1].partition(": ")[2].partition(". inner")[0].split(", ")
    )
    assert len(told) == 2


def test_few_names_are_said_and_the_rest_is_counted(tmp_path: Path) -> None:
    one, many = album(tmp_path / "one", 1), album(tmp_path / "many", 1)
    (one / "notes.docx").touch()
    for number in range(7):
        (many / f"{number}.rar").touch()
    paths = RunPaths(tmp_path / "set", "zoë")
    assert import_pictures([one], paths).notes() == ["1 file is no picture and was left out: notes.docx"]
    names = "0.rar, 1.rar, 2.rar, 3.rar, 4.rar and 2 more"
    assert import_pictures([many], paths).notes() == [
        f"7 files are no pictures and were left out: {names}. Archives are not opened there; unpack them first: {names}"
    ]


def test_a_folder_without_a_picture_says_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    packed(tmp_path / "photos" / "inner.zip", {"a.png": b"x"})
    with pytest.raises(InputError, match=r"no picture in .*photos\. inner\.zip: .* unpack it first"):
        import_pictures([tmp_path / "photos"], RunPaths(tmp_path / "set", "zoë"))


def test_programs_are_told_of_it_before_the_first_stage(tmp_path: Path) -> None:
    class Enough(Exception):
        pass

    told: list[str] = []

    def hear(event: ProgressEvent) -> None:
        told.append(event.message)
        raise Enough

    source = with_others(tmp_path / "photos")
    with pytest.raises(Enough):
        Foundry(tmp_path / "home").create(Character(name="Zoë"), "mini", pictures=[source], progress=hear)
    assert told == [TOLD]
