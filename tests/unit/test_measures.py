"""The measures rank pictures as the eye does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter

from lora_foundry.measures import (
    contrast,
    difference,
    difference_hash,
    grey,
    hash_distance,
    sharpness,
    thumbnail,
)
from tests.painted import paint


def test_the_laplacian_is_the_textbook_one() -> None:
    levels = np.random.default_rng(0).uniform(0, 255, (9, 7))
    kernel = np.array([[0, 1, 0], [1, -4, 1], [0, 1, 0]])
    slow = [(levels[y - 1 : y + 2, x - 1 : x + 2] * kernel).sum() for y in range(1, 8) for x in range(1, 6)]
    assert sharpness(levels) == pytest.approx(np.var(slow))


def test_blur_lowers_sharpness_step_by_step() -> None:
    image = paint(3, (64, 64))
    values = [sharpness(grey(image.filter(ImageFilter.GaussianBlur(radius)))) for radius in (0, 1, 2, 4)]
    assert values == sorted(values, reverse=True)
    assert values[0] > 10 * values[2]


def test_only_blank_pictures_have_no_contrast() -> None:
    assert contrast(grey(Image.new("RGB", (64, 64), (200, 30, 90)))) == 0
    assert contrast(grey(paint(3, (64, 64)))) > 20


def test_the_hash_is_the_textbook_one() -> None:
    ramp = Image.fromarray(np.tile(np.arange(0, 90, 10, dtype=np.uint8), (8, 1))).convert("RGB")
    assert difference_hash(ramp) == 2**64 - 1
    assert difference_hash(ramp.transpose(Image.Transpose.FLIP_LEFT_RIGHT)) == 0
    assert hash_distance(0b1011, 0b0010) == 2


@pytest.mark.parametrize("change", ["brightness", "contrast", "jpeg", "scaled"])
def test_a_changed_copy_stays_near_and_another_picture_does_not(change: str, tmp_path: Path) -> None:
    pictures = [paint(seed, (64, 64)) for seed in range(12)]
    for number, picture in enumerate(pictures):
        match change:
            case "brightness":
                copy = ImageEnhance.Brightness(picture).enhance(1.05)
            case "contrast":
                copy = ImageEnhance.Contrast(picture).enhance(0.9)
            case "scaled":
                copy = picture.resize((96, 96)).resize((64, 64))
            case _:
                picture.save(tmp_path / "copy.jpg", quality=80)
                copy = Image.open(tmp_path / "copy.jpg").convert("RGB")
        assert hash_distance(difference_hash(picture), difference_hash(copy)) <= 8
        assert difference(thumbnail(picture), thumbnail(copy)) <= 0.02
        for other in pictures[number + 1 :]:
            assert difference(thumbnail(picture), thumbnail(other)) > 0.3


def test_the_difference_is_one_minus_the_correlation() -> None:
    first, second = paint(1, (32, 32)), paint(2, (32, 32))
    expected = 1 - np.corrcoef(grey(first).ravel(), grey(second).ravel())[0, 1]
    assert difference(thumbnail(first), thumbnail(second)) == pytest.approx(expected)
    blank = thumbnail(Image.new("RGB", (32, 32)))
    assert difference(blank, blank) == 1
