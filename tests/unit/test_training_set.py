"""What is in a set, whatever people call their files: pictures, captions and masks are found, nothing of a person's is
moved or changed, and what is left out is named."""

from __future__ import annotations

import os
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from lora_foundry.domain.captions import call, one_line, says
from lora_foundry.domain.exclusion import Exclusion, Exclusions
from lora_foundry.errors import InputError
from lora_foundry.files import images as reader
from lora_foundry.files.hashing import file_hash
from lora_foundry.files.paths import RunPaths
from lora_foundry.files.sidecars import decode, read_caption
from lora_foundry.files.storage import write_model
from lora_foundry.files.training_set import (
    list_set,
    move_picture,
    picture_path,
    pictures_in,
    read_set,
)
from lora_foundry.stages.train.masks import mask_of
from lora_foundry.web.dataset import Looks, find_picture, in_set, pictures_of, read_records, write_caption
from tests.painted import paint, tree


@pytest.fixture
def paths(tmp_path: Path) -> RunPaths:
    made = RunPaths(tmp_path / "set", "elara")
    made.images.mkdir(parents=True)
    return made


def put(path: Path, caption: str | None = None, seed: int = 1, size: tuple[int, int] = (64, 64)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    paint(seed, size).save(path)
    if caption is not None:
        path.with_suffix(".txt").write_text(caption, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "name", ["p.txt", "p.caption", "p.tags", "p.TXT", "p.Caption", "p.png.txt", "p.PNG.txt", "p.png.caption"]
)
def test_a_caption_is_found_whatever_it_is_called(paths: RunPaths, name: str) -> None:
    picture = "p.PNG" if ".PNG" in name else "p.png"
    Image.new("RGB", (64, 64)).save(paths.images / picture, "PNG")
    (paths.images / name).write_text("elara, my own words")
    (found,) = read_set(paths).pictures
    assert found.caption == paths.images / name
    assert found.target == found.caption, "a person's file is where their next words go"


def test_the_surest_of_several_captions_counts(paths: RunPaths) -> None:
    put(paths.images / "p.png", "second")
    (paths.images / "p.caption").write_text("third")
    (paths.images / "p.png.txt").write_text("first")
    (found,) = read_set(paths).pictures
    assert [read_caption(path) for path in found.captions] == ["first", "second", "third"]


def test_two_pictures_of_one_stem_get_captions_of_their_own(paths: RunPaths) -> None:
    put(paths.images / "p.png", seed=1)
    put(paths.images / "p.jpg", seed=2)
    assert {each.target.name for each in read_set(paths).pictures} == {"p.png.txt", "p.jpg.txt"}


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("elara, smile\n", "elara, smile"),
        ("elara\nsmile\nred dress\n", "elara, smile, red dress"),
        ("elara,\nsmile,\n", "elara, smile"),
        ("elara，smile、red dress，", "elara, smile, red dress"),
        ("A girl in a long red dress stands at the\nside of a road and smiles.", "A girl in a long red dress stands at "
         "the side of a road and smiles."),
        ("  \r\n ", ""),
    ],
)  # fmt: skip
def test_captions_are_one_line_with_commas(text: str, line: str) -> None:
    assert one_line(text) == line


@given(st.text(max_size=200))
def test_one_line_is_one_line_and_stays_as_it_is(text: str) -> None:
    line = one_line(text)
    assert "\n" not in line
    assert one_line(line) == line


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "shift_jis",
                                      "gb18030", "euc_jp"])  # fmt: skip
def test_captions_are_read_in_the_encoding_that_they_have(encoding: str) -> None:
    text = "1girl, 少女, 長い髪, 笑顔, 青い目, 赤いドレス, 王冠をかぶる"
    if encoding.startswith("utf-16-"):
        text = "1girl, smile, red dress"  # without a mark only the zeros of plain letters tell it
    assert decode(text.encode(encoding)) == text


def test_bytes_that_are_no_text_are_no_caption(paths: RunPaths) -> None:
    (paths.images / "p.txt").write_bytes(bytes([0, 1, 0, 0, 255, 0]))
    with pytest.raises(InputError, match=r"p\.txt.*save it as UTF-8"):
        read_caption(paths.images / "p.txt")


def test_formats_are_in_the_set_or_named(paths: RunPaths) -> None:
    for name, kind in (("a.avif", "AVIF"), ("b.gif", "GIF"), ("c.jfif", "JPEG"), ("d.tif", "TIFF"), ("e.webp", "WEBP"),
                       ("f.BMP", "BMP"), ("g.tga", "TGA"), ("h.jp2", "JPEG2000")):  # fmt: skip
        paint(len(name) + ord(name[0]), (64, 64)).save(paths.images / name, kind)
    for name in ("i.svg", "j.psdx", "k.mp4", "notes.md", "l.eps"):
        (paths.images / name).write_bytes(b"x")
    found = read_set(paths)
    assert [each.name[0] for each in found.pictures] == list("abcdefgh")
    assert {each.name for each in found.left_out} == {"i.svg", "k.mp4", "l.eps"}
    assert all("save it as" in each.reason for each in found.left_out)


def test_heic_is_read_with_its_extra_and_named_without(
    paths: RunPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pillow_heif")
    reader.picture_suffixes()
    Image.new("RGB", (64, 48), (0, 0, 255)).save(paths.images / "a.heic", "HEIF")
    assert reader.read_picture(paths.images / "a.heic").size == (64, 48)
    assert read_set(paths).names() == {"a.heic"}
    without = reader.picture_suffixes() - {".heic", ".heif", ".hif"}
    monkeypatch.setattr(reader, "picture_suffixes", lambda: without)
    (left,) = read_set(paths).left_out
    assert "pip install" in left.reason or "install" in left.reason


def test_hidden_and_system_files_are_never_in_it(paths: RunPaths) -> None:
    put(paths.images / "a.png")
    for name in ("._a.png", ".hidden/b.png", "__MACOSX/c.png", "@eaDir/d.png", "Thumbs.db"):
        path = paths.images / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes((paths.images / "a.png").read_bytes())
    assert read_set(paths).names() == {"a.png"}


def test_folders_are_followed_and_their_names_give_repeats(paths: RunPaths) -> None:
    put(paths.images / "a.png", seed=1)
    put(paths.images / "10_elara" / "b.jpg", seed=2)
    put(paths.images / "10_elara" / "close" / "c.png", seed=3)
    put(paths.images / "holiday" / "d.png", seed=4)
    put(paths.images / "masks" / "a.png", seed=5)
    found = {each.name: each.repeats for each in read_set(paths).pictures}
    assert found == {"a.png": 0, "10_elara/b.jpg": 10, "10_elara/close/c.png": 10, "holiday/d.png": 0}


@pytest.mark.skipif(sys.platform == "win32", reason="links need a right of their own there")
def test_links_are_followed_once(paths: RunPaths, tmp_path: Path) -> None:
    far = put(tmp_path / "elsewhere" / "far.png", "elara, far", seed=1)
    (paths.images / "far.png").symlink_to(far)
    (paths.images / "far.txt").symlink_to(far.with_suffix(".txt"))
    (paths.images / "again.png").symlink_to(far)
    (paths.images / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (paths.images / "folder").symlink_to(put(tmp_path / "album" / "in.png", seed=2).parent)
    (paths.images / "loop").symlink_to(paths.images)
    found = read_set(paths)
    assert found.names() == {"again.png", "folder/in.png"} or found.names() == {"far.png", "folder/in.png"}
    assert {each.name: each.code for each in found.left_out} == {
        ("far.png" if "again.png" in found.names() else "again.png"): "twice",
        "gone.png": "link",
    }


@pytest.mark.skipif(sys.platform == "win32", reason="no such names there")
@pytest.mark.parametrize("name", ["a:b.png", "q?#%.png", "ü ñ.png", "a'b\".png", " lead.png", "10_x/in.png"])
def test_what_is_listed_is_reachable_and_shown(paths: RunPaths, name: str) -> None:
    put(paths.images / name)
    (shown,) = pictures_of(paths, Looks(), read_records(paths))
    assert shown.file == name
    assert find_picture(paths, name) == paths.images / name
    write_caption(in_set(paths, name), "elara, by hand")
    assert read_caption(read_set(paths).pictures[0].target) == "elara, by hand"


@pytest.mark.parametrize("name", ["../secret.png", "/etc/a.png", "a/../../b.png", ".a.png", "x/.h/a.png", "", "a\0.png",
                                  "run.json"])  # fmt: skip
def test_names_that_no_listing_holds_lead_nowhere(paths: RunPaths, name: str) -> None:
    put(paths.root / "secret.png")
    assert picture_path(paths.images, name) is None


def test_an_excluded_picture_is_left_out_with_its_reason(paths: RunPaths) -> None:
    path = put(paths.images / "10_x" / "a.png")
    put(paths.images / "b.png", seed=2)
    mark = Exclusion(sha256=file_hash(path), reason="blurred", at=datetime.now(UTC))
    write_model(paths.exclusions, Exclusions(files={"10_x/a.png": mark}))
    assert read_set(paths).names() == {"b.png"}
    assert [(each.name, each.reason) for each in read_set(paths).left_out] == [("10_x/a.png", "blurred")]
    assert list_set(paths).names() == {"b.png", "10_x/a.png"}


# Masks ------------------------------------------------------------------------------------------------------------


def test_masks_are_found_by_the_names_that_trainers_give(paths: RunPaths) -> None:
    for number, mask in enumerate(("../masks/p0.png", "../masks/p1.jpg", "p2-masklabel.png", "p3_mask.png",
                                   "../masks/p4.png.png")):  # fmt: skip
        put(paths.images / f"p{number}.png", seed=number)
        put(paths.images / mask, seed=9 + number)
    found = read_set(paths).pictures
    assert [each.name for each in found] == [f"p{number}.png" for number in range(5)], "no mask is a picture"
    assert all(each.mask is not None and each.mask.is_file() for each in found)


def test_a_mask_that_could_be_another_pictures_is_none_s(paths: RunPaths) -> None:
    put(paths.images / "a.png", seed=1)
    put(paths.images / "a.jpg", seed=2)
    put(paths.masks / "a.png", seed=3)
    found = {each.name: each.mask for each in read_set(paths).pictures}
    assert found == {"a.jpg": None, "a.png": paths.masks / "a.png"}


def test_a_mask_goes_with_its_picture(paths: RunPaths) -> None:
    put(paths.images / "elara_001.png", "elara, words")
    put(paths.masks / "elara_001.png", seed=2)
    move_picture(paths, paths.images / "elara_001.png", paths.rejected / "elara_001_attempt1.png")
    assert not tree(paths.images)
    assert not tree(paths.masks)
    assert set(tree(paths.rejected)) == {
        "elara_001_attempt1.png", "elara_001_attempt1.txt", "masks/elara_001_attempt1.png"}  # fmt: skip


@pytest.mark.parametrize(
    ("size", "fits"),
    [((64, 64), True), ((32, 32), True), ((128, 64), False), ((64, 96), False), ((65, 64), True)],
)
def test_a_mask_has_the_shape_of_its_picture(paths: RunPaths, size: tuple[int, int], fits: bool) -> None:
    put(paths.images / "a.png")
    paths.masks.mkdir()
    Image.new("L", size, 255).save(paths.masks / "a.png")
    (picture,) = read_set(paths).pictures
    if fits:
        assert mask_of(picture, "folder", paths) == paths.masks / "a.png"
    else:
        with pytest.raises(InputError, match=f"{size[0]}x{size[1]}.*64x64"):
            mask_of(picture, "folder", paths)


def test_an_empty_mask_is_refused(paths: RunPaths) -> None:
    put(paths.images / "a.png")
    paths.masks.mkdir()
    Image.new("L", (64, 64), 0).save(paths.masks / "a.png")
    (picture,) = read_set(paths).pictures
    with pytest.raises(InputError, match="black throughout"):
        mask_of(picture, "folder", paths)
    Image.new("RGBA", (64, 64), (9, 9, 9, 0)).save(paths.images / "a.png")
    with pytest.raises(InputError, match="transparent throughout"):
        mask_of(picture, "alpha", paths)
    (paths.masks / "a.png").unlink()
    with pytest.raises(InputError, match="has no mask"):
        mask_of(read_set(paths).pictures[0], "folder", paths)


# The trigger word in captions that a person has written -------------------------------------------------------------


@pytest.mark.parametrize(
    ("caption", "trained"),
    [
        ("1girl, smile", "elrx, 1girl, smile"),
        ("elrx, smile", "elrx, smile"),
        ("ELRX smiles", "ELRX smiles"),
        ("elara, smile", "elrx, smile"),
        ("Elara smiles at elara", "elrx smiles at elara"),
        ("elaraish hat", "elrx, elaraish hat"),
        ("", "elrx"),
    ],
)
def test_the_trigger_is_put_where_it_is_missing(caption: str, trained: str) -> None:
    assert call(caption, "elrx", ["elara"]) == trained


@given(st.text(max_size=60), st.text("abcxyz (){}[].*+?\\^$|é", min_size=1, max_size=12).filter(str.strip))
def test_a_called_caption_says_its_trigger(caption: str, trigger: str) -> None:
    word = " ".join(trigger.split())
    assert word in call(one_line(caption), word, ["elara"]) or says(one_line(caption), word)


def test_pictures_of_any_folder(tmp_path: Path) -> None:
    put(tmp_path / "reg" / "a.png", "1girl")
    os.makedirs(tmp_path / "reg" / "deep")
    put(tmp_path / "reg" / "deep" / "b.webp", "1boy", seed=3)
    assert pictures_in(tmp_path / "reg").names() == {"a.png", "deep/b.webp"}
    assert pictures_in(tmp_path / "nowhere").pictures == ()
