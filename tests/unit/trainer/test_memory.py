"""Fitting to a card, giving way when memory runs out, and noticing when it spills."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from lora_foundry.domain.run import ProgressEvent
from lora_foundry.errors import BackendError
from lora_foundry.ports import TrainingImage, TrainingJob
from lora_foundry.trainer import trainer
from lora_foundry.trainer.events import EventFile, _checksum
from lora_foundry.trainer.loop import Loop
from lora_foundry.trainer.memory import StepWatch, fit
from lora_foundry.trainer.trainer import InProcessTrainer
from tests.unit.trainer.conftest import short_section
from tests.unit.trainer.toy import BASE, ToyModel


@pytest.fixture
def images(tmp_path: Path) -> tuple[TrainingImage, ...]:
    made = []
    for number in range(3):
        path = tmp_path / f"{number}.png"
        Image.effect_noise((64, 64), 60 + number).convert("RGB").save(path)
        made.append(TrainingImage(path, f"elara, tag {number}"))
    return tuple(made)


def make(folder: Path, images: tuple[TrainingImage, ...], **given: object) -> TrainingJob:
    settings = short_section(**{"rank": 2, "batch_size": 4, "learning_rate": 1e-2, **given})
    return TrainingJob(images, settings, "elara", folder / "lora.safetensors", folder, {})


class Small(ToyModel):
    """A toy on a device whose memory holds one picture, and that only with gradient checkpointing."""

    holds = 1

    def __init__(self, settings: Any) -> None:
        super().__init__(settings)
        self._saving = settings.gradient_checkpointing

    def losses(self, latents: Tensor, *others: Any) -> Tensor:
        if len(latents) > self.holds or not self._saving:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().losses(latents, *others)


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> list[type[ToyModel]]:
    """The kind of toy that the trainer loads; the test may put another one in its place."""
    kinds: list[type[ToyModel]] = [ToyModel]
    monkeypatch.setattr(trainer, "load_family", lambda base, given, device: kinds[0](given))
    return kinds


def test_out_of_memory_gives_way_step_by_step_says_so_and_learns_the_same(
    toy: list[type[ToyModel]], images: tuple[TrainingImage, ...], tmp_path: Path
) -> None:
    plain = make(tmp_path / "a", images)
    InProcessTrainer(BASE, "cpu").train(plain, lambda event: None)
    toy[0] = Small
    squeezed, events = make(tmp_path / "b", images), list[ProgressEvent]()
    InProcessTrainer(BASE, "cpu").train(squeezed, events.append)
    said = [event.message for event in events if event.message.startswith("the memory")]
    assert said == [
        "the memory did not suffice; going on with gradient_checkpointing False -> True",
        "the memory did not suffice; going on with batch_size 4 -> 2, accumulation 1 -> 2",
        "the memory did not suffice; going on with batch_size 2 -> 1, accumulation 2 -> 4",
    ]
    assert said[-1] in (squeezed.workdir / "log.txt").read_text()
    one, two = load_file(plain.output), load_file(squeezed.output)
    assert all(torch.allclose(one[key], two[key], atol=2e-3) for key in one)
    # Running it again goes on with what did fit, at once.
    events.clear()
    assert InProcessTrainer(BASE, "cpu").train(squeezed, events.append).resumed_from == 6
    assert not any("memory" in event.message for event in events)


def test_where_nothing_is_left_to_give_up_the_error_says_what_to_set(
    toy: list[type[ToyModel]],
    images: tuple[TrainingImage, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    toy[0] = Small
    monkeypatch.setattr(Small, "holds", 0)
    for given in ({}, {"memory": "as_set"}):
        with pytest.raises(BackendError, match=r"train\.batch_size"):
            InProcessTrainer(BASE, "cpu").train(make(tmp_path / "c", images, **given), lambda event: None)


@pytest.mark.parametrize("family", ["sd", "sdxl", "z_image"])
def test_a_smaller_card_takes_less_at_once_and_learns_from_as_many(family: str) -> None:
    asked = short_section(batch_size=4, resolution=1024, rank=32, precision="bf16")
    earlier = None
    for card in ("24gb", "16gb", "12gb", "8gb"):
        fitted, words = fit(asked.model_copy(update={"memory": card}), family, None)
        assert fitted.samples_per_step == 4
        assert bool(words) == (fitted.batch_size != 4 or fitted.gradient_checkpointing)
        if earlier is not None:
            assert fitted.batch_size <= earlier.batch_size
            assert fitted.gradient_checkpointing >= earlier.gradient_checkpointing
        earlier = fitted
    assert earlier is not None
    assert earlier.gradient_checkpointing


def test_auto_reads_what_is_free_and_leaves_a_cpu_and_a_fixed_choice_alone() -> None:
    asked = short_section(batch_size=8, resolution=768)
    assert fit(asked, "sd", None) == (asked, "")
    assert fit(asked.model_copy(update={"memory": "as_set"}), "sd", 1.0)[1] == ""
    assert fit(asked, "sd", 80.0) == (asked, "")
    tight, words = fit(asked, "sd", 2.0)
    assert (tight.batch_size, tight.accumulation, tight.optimizer) == (1, 8, "adamw8bit")
    assert "optimizer adamw -> adamw8bit" in words


def test_a_step_that_takes_five_times_as_long_is_reported_once() -> None:
    watch = StepWatch()
    assert [watch.observe(10, 2.0 + 0.1 * turn) for turn in range(5)] == [""] * 5
    warning = watch.observe(4, 4.6)
    assert "a step takes 1.15 s, 5 times as long as before" in warning
    assert watch.observe(4, 4.8) == ""
    assert watch.observe(10, 2.0) == ""
    assert watch.observe(1, 3.0) != ""


def test_the_loop_reports_a_slow_step_in_the_log(
    toy: list[type[ToyModel]],
    images: tuple[TrainingImage, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A clock that a toy's step moves on: a second each, and ten from the eighth on."""
    now, calls = [0.0], [0]

    class Slow(ToyModel):
        def losses(self, *arguments: Any) -> Tensor:
            calls[0] += 1
            now[0] += 10.0 if calls[0] > 7 else 1.0
            return super().losses(*arguments)

    toy[0] = Slow
    monkeypatch.setattr(trainer, "Loop", lambda *given: Loop(*given, clock=lambda: now[0]))
    job = make(tmp_path / "d", images, steps=10)
    InProcessTrainer(BASE, "cpu").train(job, lambda event: None)
    log = (job.workdir / "log.txt").read_text()
    assert log.count("times as long as before") == 1
    assert "[step 8] a step takes 10.00 s, 10 times" in log


def test_checksums_are_those_of_the_format() -> None:
    """The known value of CRC-32C over "123456789" is 0xE3069283; the format rotates it and adds a constant."""
    masked = ((0xE3069283 >> 15 | 0xE3069283 << 17) + 0xA282EAD8) & 0xFFFFFFFF
    assert _checksum(b"123456789") == struct.pack("<I", masked)


def test_events_are_whole_records_and_a_resumed_run_drops_later_files(tmp_path: Path) -> None:
    for start in (0, 4, 2):
        file = EventFile(tmp_path, start)
        file.add(start + 1, 1.5e9, {"loss": 0.25, "learning_rate": 1e-4})
        file.close()
    files = sorted(tmp_path.iterdir())
    assert [int(path.name.split(".")[3]) for path in files] == [0, 2]
    data, records = files[0].read_bytes(), []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        assert data[8:12] == _checksum(data[:8])
        body, data = data[12 : 12 + length], data[12 + length :]
        assert data[:4] == _checksum(body)
        records.append(body)
        data = data[4:]
    assert b"brain.Event:2" in records[0]
    assert b"loss" in records[1]
    assert struct.pack("<f", 0.25) in records[1]
