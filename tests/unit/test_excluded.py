"""Pictures that a person threw out are neither trained on (test_api.py) nor measured against."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from PIL import Image

from lora_foundry.domain.exclusion import Exclusion, Exclusions
from lora_foundry.files.hashing import file_hash
from lora_foundry.files.storage import write_model
from lora_foundry.ports import FloatArray
from tests.unit.test_evaluate_stage import Lookout, Ports, measure, prepare


def test_pictures_that_were_thrown_out_are_not_measured_against(tmp_path: Path) -> None:
    run, paths = prepare(tmp_path)
    first = measure(run, Ports(tagger=Lookout()))
    mark = Exclusion(sha256=file_hash(paths.image(0)), at=datetime.now(UTC))
    write_model(paths.exclusions, Exclusions(files={paths.image(0).name: mark}))
    assert measure(run, Ports(tagger=Lookout())).fingerprint != first.fingerprint


class Greens:
    """An embedder that sees how green a picture is."""

    same = 0.8

    def embed(self, images: Sequence[Image.Image]) -> FloatArray:
        rows = np.array(
            [[1.0, image.convert("RGB").getpixel((0, 0))[1] / 255] for image in images], np.float32
        )
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_where_only_own_pictures_are_left_likeness_is_measured_to_them(tmp_path: Path) -> None:
    run, paths = prepare(tmp_path)
    marks = {}
    for drawn in list(paths.images.glob("*.png")):
        marks[drawn.name] = Exclusion(sha256=file_hash(drawn), at=datetime.now(UTC))
    for number in range(5):
        Image.new("RGB", (64, 64), (0, 200 + number, 0)).save(paths.images / f"mine{number}.png")
    write_model(paths.exclusions, Exclusions(files=marks))
    ports = Ports()
    ports.embedder = Greens()  # type: ignore[assignment]
    result = measure(run, ports)
    assert result.own_likeness is not None
    assert result.own_likeness > 0.99
    assert result.after.likeness is not None
    assert 0 < result.after.likeness < result.own_likeness
