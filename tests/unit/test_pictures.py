"""What a picture file says about itself survives every trip, and damage is noticed."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from lora_foundry.domain.dataset import ImageRequest, PictureRecord
from lora_foundry.domain.shots import Shot
from lora_foundry.files.hashing import file_hash
from lora_foundry.files.images import a1111_parameters, load_picture, read_record, save_picture
from tests.painted import paint

texts = st.text(st.characters(exclude_categories=("Cs",)), max_size=60)


def record(prompt: str = "1girl, brown hair", negative: str = "", seed: int = 7) -> PictureRecord:
    request = ImageRequest(
        key="001.0", prompt=prompt, negative=negative, seed=seed, width=64, height=48, steps=28, cfg=7.5,
        sampler="dpmpp_2m", scheduler="karras",
    )  # fmt: skip
    shot = Shot("running", "", "back view", "golden hour", "outdoor setting")
    return PictureRecord(
        file="zoë_001.png", shot=shot, request=request, model="mini [ab]", attempt=2, guidance_rescale=0.5
    )


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(prompt=texts, negative=texts, seed=st.integers(0, 2**53 - 1))
def test_a_record_makes_the_round_trip_through_its_png(
    tmp_path: Path, prompt: str, negative: str, seed: int
) -> None:
    wrote = record(prompt, negative, seed)
    image = paint(seed, (64, 48))
    saved = save_picture(tmp_path / "zoë 1.png", image, wrote)
    assert read_record(tmp_path / "zoë 1.png") == wrote
    assert saved == wrote.model_copy(update={"sha256": file_hash(tmp_path / "zoë 1.png")})
    loaded = load_picture(tmp_path / "zoë 1.png")
    assert loaded is not None
    assert loaded.tobytes() == image.tobytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["zoë 1.png"]


def test_other_tools_find_their_parameters(tmp_path: Path) -> None:
    save_picture(tmp_path / "a.png", paint(1, (64, 48)), record("1girl, Zoë", "blurry"))
    with Image.open(tmp_path / "a.png") as file:
        text = file.info["parameters"]
    assert text == a1111_parameters(record("1girl, Zoë", "blurry"))
    assert text.splitlines() == [
        "1girl, Zoë",
        "Negative prompt: blurry",
        "Steps: 28, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7.5, Seed: 7, Size: 64x48, "
        "Model: mini [ab]",
    ]


@pytest.mark.parametrize("kept", [0, 4, 30, 0.5, 0.9, 0.99])
def test_a_cut_file_is_no_picture(tmp_path: Path, kept: float) -> None:
    path = tmp_path / "a.png"
    save_picture(path, paint(1, (64, 48)), record())
    data = path.read_bytes()
    path.write_bytes(data[: kept if isinstance(kept, int) else int(len(data) * kept)])
    assert load_picture(path) is None


def test_flipped_bytes_are_no_picture(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    save_picture(path, paint(1, (64, 48)), record())
    data = bytearray(path.read_bytes())
    at = data.index(b"IDAT") + 60
    data[at : at + 20] = bytes(255 - value for value in data[at : at + 20])
    path.write_bytes(data)
    assert load_picture(path) is None
    assert read_record(path) == record()


def test_a_picture_of_someone_else_has_no_record(tmp_path: Path) -> None:
    paint(1, (64, 48)).save(tmp_path / "a.png")
    assert read_record(tmp_path / "a.png") is None
    assert read_record(tmp_path / "absent.png") is None
    assert load_picture(tmp_path / "absent.png") is None
