"""Pictures become latents once, whatever their size, and captions conditions."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from lora_foundry.errors import InputError
from lora_foundry.files.images import picture_size
from lora_foundry.trainer.caches import TensorFile
from lora_foundry.trainer.images import bucket_size, commonest_bucket_size, read_tensor


@pytest.mark.parametrize(
    ("sizes", "resolution", "multiple", "frame"),
    [
        ([(64, 64)] * 3, 64, 8, (64, 64)),
        ([(768, 768), (512, 512), (768, 768)], 512, 64, (512, 512)),
        ([(512, 768)] * 2 + [(64, 64)], 512, 64, (384, 576)),
        ([(5000, 10)], 64, 8, (128, 32)),
        ([(1, 1)], 64, 8, (64, 64)),
    ],
)
def test_the_frame_has_the_commonest_shape_and_the_asked_area(
    sizes: list[tuple[int, int]], resolution: int, multiple: int, frame: tuple[int, int]
) -> None:
    assert commonest_bucket_size(sizes, resolution, multiple) == frame


def test_a_picture_is_scaled_to_cover_and_cut_around_the_centre(tmp_path: Path) -> None:
    wide = Image.new("RGB", (300, 100), "red")
    wide.paste("blue", (100, 0, 200, 100))
    wide.save(tmp_path / "wide.png")
    pixels = read_tensor(tmp_path / "wide.png", (32, 32))
    assert pixels.shape == (3, 32, 32)
    assert torch.allclose(pixels[:, 16, 16], torch.tensor([-1.0, -1.0, 1.0]), atol=0.02)
    assert torch.allclose(pixels[:, 4, 2], torch.tensor([-1.0, -1.0, 1.0]), atol=0.02)


def test_transparency_is_white_and_palettes_and_grey_are_read(tmp_path: Path) -> None:
    Image.new("RGBA", (40, 40), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    assert torch.equal(read_tensor(tmp_path / "clear.png", (16, 16)), torch.ones(3, 16, 16))
    for mode in ("L", "P", "1", "I;16", "LA"):
        path = tmp_path / f"{mode.replace(';', '')}.png"
        Image.new(mode, (40, 40)).save(path)
        assert read_tensor(path, (16, 16)).shape == (3, 16, 16)


def test_a_turned_photograph_is_read_upright(tmp_path: Path) -> None:
    image = Image.new("RGB", (40, 20), "white")
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.jpg", exif=exif)
    assert picture_size(tmp_path / "turned.jpg") == (20, 40)


@pytest.mark.parametrize("size", [(32, 32), (48, 24)])
def test_a_large_photograph_is_decoded_small_and_looks_the_same(
    size: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.effect_noise((40, 30), 90).resize((800, 600)).convert("RGB").save(tmp_path / "a.jpg", quality=95)
    Image.open(tmp_path / "a.jpg").save(tmp_path / "a.png")
    decoded: list[tuple[int, int]] = []

    def fit(image: Image.Image, *rest: Any) -> Image.Image:
        decoded.append(image.size)
        return ImageOps.fit(image, *rest)

    monkeypatch.setattr("lora_foundry.trainer.images.ImageOps", SimpleNamespace(fit=fit))
    photograph, whole = (read_tensor(tmp_path / name, size) for name in ("a.jpg", "a.png"))
    assert decoded[0][0] < decoded[1][0] == 800
    assert min(decoded[0]) >= 2 * max(size)
    assert (photograph - whole).abs().mean() < 0.02
    assert whole.std() > 0.1, "a grey picture would pass"


@pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\nhalf"])
def test_what_is_no_picture_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.png"
    path.write_bytes(content)
    for read in (picture_size, lambda file: read_tensor(file, (16, 16))):
        with pytest.raises(InputError, match=r"broken\.png is not a picture"):
            read(path)


def test_a_cut_off_picture_is_named(tmp_path: Path) -> None:
    whole = tmp_path / "whole.png"
    Image.effect_noise((64, 64), 80).save(whole)
    path = tmp_path / "cut.png"
    path.write_bytes(whole.read_bytes()[:-900])
    with pytest.raises(InputError, match=r"cut\.png"):
        read_tensor(path, (16, 16))


def test_a_large_cache_is_read_from_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = {"a": torch.arange(6.0), "b": torch.ones(2, 2)}
    TensorFile.create(tmp_path / "c.safetensors", tensors)
    monkeypatch.setattr("lora_foundry.trainer.caches._MEMORY_LIMIT", 1)
    on_disk = TensorFile.open(tmp_path / "c.safetensors")
    assert on_disk is not None
    assert on_disk._tensors is None
    assert torch.equal(on_disk["a"], tensors["a"])


def test_a_damaged_cache_counts_as_none(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    assert TensorFile.open(path) is None
    TensorFile.create(path, {"a": torch.ones(100)})
    path.write_bytes(path.read_bytes()[:-4])
    assert TensorFile.open(path) is None


@given(
    size=st.tuples(st.integers(16, 6000), st.integers(16, 6000)),
    resolution=st.integers(8, 256).map(lambda eighths: 8 * eighths),
    multiple=st.sampled_from([8, 16, 32, 64]),
)
def test_a_bucket_never_exceeds_the_area_and_cuts_little_off(
    size: tuple[int, int], resolution: int, multiple: int
) -> None:
    width, height = bucket_size(size, resolution, multiple)
    assert width % multiple == height % multiple == 0
    if resolution >= 4 * multiple:
        assert width * height <= resolution**2
        assert width * height >= 0.5 * resolution**2
    aspect = min(4.0, max(0.25, size[0] / size[1]))
    if resolution >= 16 * multiple:
        assert 0.85 < width / height / aspect < 1.18


@pytest.mark.parametrize("side", [512, 768, 1024])
def test_a_square_picture_is_trained_at_the_resolution(side: int) -> None:
    assert bucket_size((999, 999), side, 64) == (side, side)
