"""Rounds before the last gallery: each keeps the tightest pictures, trains on them alone, and stops when it no longer
helps. Nothing that is done is done again."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lora_foundry import pipeline
from lora_foundry.domain.character import Character
from lora_foundry.domain.dataset import PictureRecord
from lora_foundry.domain.lora import LoraUse, TrainedLora
from lora_foundry.errors import BackendError, InputError
from lora_foundry.files.images import read_record
from lora_foundry.ports import FloatArray, TrainingJob
from lora_foundry.stages.curate import step as curate
from tests.painted import PaintedGenerator, PaintedPorts, make_run, quiet, tree

SETTINGS = ("generate.images=8", "generate.rounds=3", "generate.round_images=0", "generate.round_keep=0.5",
            "generate.round_steps=150", "generate.complete_description=false", "curate.identity=false")  # fmt: skip


class Painter(PaintedGenerator):
    """Remembers which LoRA each picture was asked with."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.uses: list[tuple[str, LoraUse | None]] = []

    def generate(self, batches, lora=None, reference=None):  # type: ignore[no-untyped-def]
        for made in super().generate(batches, lora):
            self.uses.append((made.request.prompt, lora))
            yield made


class Eye:
    """Sees galleries whose pictures lie as far apart as `spreads` says, one after another."""

    same = 0.5

    def __init__(self, *spreads: float) -> None:
        self.spreads = list(spreads)

    def embed(self, images: Sequence[Image.Image]) -> FloatArray:
        spread = self.spreads.pop(0)
        rows = np.ones((len(images), 3), np.float32)
        rows += spread * np.random.default_rng(1).standard_normal(rows.shape).astype(np.float32)
        return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)


class Coach:
    """Writes a file for a LoRA and remembers what it was asked to learn."""

    model = "coach"

    def __init__(self) -> None:
        self.jobs: list[TrainingJob] = []

    def train(self, job: TrainingJob, progress: object) -> TrainedLora:
        self.jobs.append(job)
        job.output.write_bytes(str([image.path.name for image in job.images]).encode())
        digest = hashlib.sha256(job.output.read_bytes()).hexdigest()
        return TrainedLora(path=job.output, sha256=digest, steps=1, final_loss=0.1, seconds=0.0)


def ports(painter: PaintedGenerator, *spreads: float) -> PaintedPorts:
    made = PaintedPorts(painter)
    made.embedder = Eye(*spreads)  # type: ignore[assignment]
    made.trainer = Coach()
    return made


def test_each_round_trains_on_the_tightest_pictures_and_the_next_is_drawn_with_it(tmp_path: Path) -> None:
    run, painter = make_run(tmp_path, *SETTINGS), Painter()
    given = ports(painter, 0.8, 0.3)
    result = pipeline.generate(run, given, quiet)
    assert [each.number for each in result.rounds] == [1, 2]
    assert result.rounds[1].distance < result.rounds[0].distance
    assert [len(job.images) for job in given.trainer.jobs] == [4, 4]
    assert {job.settings.steps for job in given.trainer.jobs} == {run.recipe.generate.round_steps}
    assert all(image.caption.startswith(run.character.trigger) for image in given.trainer.jobs[0].images)
    galleries = [painter.uses[start : start + 8] for start in (0, 8, 16)]
    assert {lora for _, lora in galleries[0]} == {None}
    for number, gallery in enumerate(galleries[1:], 1):
        assert {lora.path.parent.name for _, lora in gallery if lora} == {f"{number:02d}"}
        assert all(prompt.startswith(run.character.trigger) for prompt, _ in gallery)
    record = read_record(tmp_path / "images" / result.pictures[0].file)
    assert record is not None
    assert "+ round 2 LoRA" in record.model


def test_a_round_is_never_larger_than_the_set(tmp_path: Path) -> None:
    run, painter = make_run(tmp_path, *SETTINGS, "generate.round_images=16", "generate.rounds=2"), Painter()
    pipeline.generate(run, ports(painter, 0.8), quiet)
    assert len(painter.uses) == 8 + 8


def test_rounds_stop_when_the_pictures_move_no_closer(tmp_path: Path) -> None:
    painter = Painter()
    given = ports(painter, 0.3, 0.8)
    result = pipeline.generate(make_run(tmp_path, *SETTINGS, "generate.rounds=5"), given, quiet)
    assert len(result.rounds) == 2
    assert result.rounds[1].lora == ""
    assert len(given.trainer.jobs) == 1
    assert {lora.path.parent.name for _, lora in painter.uses[16:] if lora} == {"01"}


def test_finished_rounds_are_not_done_again_and_a_stopped_one_goes_on(tmp_path: Path) -> None:
    straight = pipeline.generate(
        make_run(tmp_path / "straight", *SETTINGS), ports(Painter(), 0.8, 0.3), quiet
    )
    run = make_run(tmp_path / "broken", *SETTINGS)
    broken = ports(Painter(breaks_after=11), 0.8)
    with pytest.raises(BackendError):
        pipeline.generate(run, broken, quiet)
    second = ports(Painter(), 0.3)
    result = pipeline.generate(run, second, quiet)
    assert [each.distance for each in result.rounds] == [each.distance for each in straight.rounds]
    assert len(second.trainer.jobs) == 1
    assert tree(tmp_path / "broken" / "images") == tree(tmp_path / "straight" / "images")
    idle = ports(Painter(breaks_after=0))
    assert pipeline.generate(run, idle, quiet) == result
    curate.run(run, idle, quiet)
    assert not idle.trainer.jobs


def test_rounds_need_an_eye(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="embedder"):
        pipeline.generate(make_run(tmp_path, *SETTINGS), PaintedPorts(Painter()), quiet)


class Looker:
    """Sees the tags that it is told to, picture by picture."""

    def __init__(self, *tags: list[str]) -> None:
        self.tags = list(tags)
        self.looked: list[str] = []

    def describe(
        self, character: Character, pictures: Sequence[PictureRecord], folder: Path
    ) -> list[list[str]]:
        self.looked += [str(folder / picture.file) for picture in pictures]
        return [self.tags[number % len(self.tags)] for number in range(len(pictures))]


SETTLED = (*SETTINGS, "generate.complete_description=true", "generate.round_steps=0", "generate.rounds=2")


def test_what_the_cluster_shows_is_added_to_the_description(tmp_path: Path) -> None:
    painter, looker = Painter(), Looker(["green eyes", "smile", "blonde hair"], ["green eyes", "sitting"])
    given = ports(painter, 0.8)
    given.captioners = (looker,)
    run = make_run(tmp_path, *SETTLED)
    result = pipeline.generate(run, given, quiet)
    assert result.rounds[0].completed == ("green eyes",), (
        "the description says the hair's colour, a smile is no feature"
    )
    assert result.rounds[0].lora == ""
    assert not given.trainer.jobs
    assert {Path(path).name for path in looker.looked} == set(result.rounds[0].kept)
    first, last = [prompt for prompt, _ in painter.uses[:8]], [prompt for prompt, _ in painter.uses[8:]]
    assert not any("green eyes" in prompt for prompt in first)
    assert all(f"{run.character.description}, green eyes" in prompt for prompt in last)
    again = ports(Painter(breaks_after=0))
    again.captioners = (looker,)
    assert pipeline.generate(run, again, quiet) == result


def test_nothing_left_open_ends_the_rounds(tmp_path: Path) -> None:
    given = ports(Painter(), 0.8, 0.3, 0.2)
    given.captioners = (Looker(["smile"]),)
    result = pipeline.generate(make_run(tmp_path, *SETTLED, "generate.rounds=4"), given, quiet)
    assert len(result.rounds) == 1


def test_settling_needs_an_instrument_that_looks(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"caption\.look"):
        pipeline.generate(make_run(tmp_path, *SETTLED), ports(Painter(), 0.8), quiet)
