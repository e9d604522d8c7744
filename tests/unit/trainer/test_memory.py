"""Fitting to a card, giving way when memory runs out, and noticing when it spills."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from lora_foundry.domain.run import ProgressEvent
from lora_foundry.domain.sections import TrainSection
from lora_foundry.errors import BackendError
from lora_foundry.families._shared.family import Batch
from lora_foundry.families._shared.inspect import Base
from lora_foundry.families._shared.memory import Means
from lora_foundry.families._shared.quantised import Packing
from lora_foundry.ports import TrainingImage, TrainingJob
from lora_foundry.trainer import memory, trainer
from lora_foundry.trainer.logging import EventFile, _checksum
from lora_foundry.trainer.loop import Loop
from lora_foundry.trainer.memory import StepWatch
from lora_foundry.trainer.trainer import InProcessTrainer
from tests.unit.trainer.conftest import short_section
from tests.unit.trainer.toy import BASE, ToyModel

GIB = 1 << 30


@pytest.fixture
def images(tmp_path: Path) -> tuple[TrainingImage, ...]:
    made = []
    for number in range(3):
        path = tmp_path / f"{number}.png"
        Image.effect_noise((64, 64), 60 + number).convert("RGB").save(path)
        made.append(TrainingImage(path, f"elara, tag {number}"))
    return tuple(made)


def make(folder: Path, images: tuple[TrainingImage, ...], **chosen: object) -> TrainingJob:
    settings = short_section(**{"rank": 2, "batch_size": 4, "learning_rate": 1e-2, **chosen})
    return TrainingJob(images, settings, "elara", folder / "lora.safetensors", folder, {})


class Small(ToyModel):
    """A toy on a device whose memory holds one picture, and that only with gradient checkpointing."""

    holds = 1

    def __init__(self, settings: Any) -> None:
        super().__init__(settings)
        self._saving = settings.gradient_checkpointing

    def losses(self, batch: Batch) -> Tensor:
        if len(batch.latents) > self.holds or not self._saving:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().losses(batch)


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> list[type[ToyModel]]:
    """The kind of toy that the trainer loads; the test may put another one in its place."""
    kinds: list[type[ToyModel]] = [ToyModel]
    monkeypatch.setattr(trainer, "load_family", lambda base, given, device: kinds[0](given))
    return kinds


@pytest.mark.slow
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
        "the memory did not suffice; going on with gradient checkpointing",
        "the memory did not suffice; going on with batches of 2 in place of 4",
        "the memory did not suffice; going on with batches of 1 in place of 2",
    ]
    assert said[-1] in (squeezed.workdir / "log.txt").read_text()
    one, two = load_file(plain.output), load_file(squeezed.output)
    assert all(torch.allclose(one[key], two[key], atol=2e-3) for key in one)
    # Running it again goes on with what did fit, at once.
    events.clear()
    assert InProcessTrainer(BASE, "cpu").train(squeezed, events.append).resumed_from == 6
    assert not any("memory" in event.message for event in events)


@pytest.mark.slow
def test_where_nothing_is_left_to_give_up_the_error_says_what_to_set(
    toy: list[type[ToyModel]],
    images: tuple[TrainingImage, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    toy[0] = Small
    monkeypatch.setattr(Small, "holds", 0)
    for chosen in ({}, {"memory": "as_set"}):
        with pytest.raises(BackendError, match=r"train\.batch_size"):
            InProcessTrainer(BASE, "cpu").train(make(tmp_path / "c", images, **chosen), lambda event: None)


@pytest.fixture
def estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    """A base of 4 GiB in ten blocks, of which each picture of 512 pixels takes 1 GiB more, and 0.25 with checkpointing;
    shuffled captions keep 0.5 GiB of text encoder."""

    def bits(section: TrainSection) -> float:
        return {"int8": 8, "nf4": 4}.get(section.quantise, 16) / 16

    def needed(base: Base, section: TrainSection) -> int:
        picture = 0.25 if section.gradient_checkpointing else 1.0
        text = 0.5 if section.shuffle_tags and not section.cache_captions else 0.0
        there = 4 * bits(section) * min(1.0, 1 - section.streamed + (0.2 if section.streamed else 0))
        return int((there + text + picture * section.batch_size * (section.resolution / 512) ** 2) * GIB)

    monkeypatch.setattr(memory, "training_memory", needed)
    monkeypatch.setattr(
        memory, "waiting_memory", lambda base, section: int(4 * bits(section) * section.streamed * GIB)
    )


NOTHING_ELSE = Means()
SAME_RESULT = {"batch_size", "accumulation", "gradient_checkpointing", "cache_captions", "streamed"}


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    batch=st.integers(1, 32), repeats=st.integers(1, 4), resolution=st.sampled_from([512, 768, 1024]),
    free=st.floats(0.5, 80), optimizer=st.sampled_from(["adamw", "adamw8bit", "adafactor"]), shuffled=st.booleans(),
    blocks=st.sampled_from([0, 10]), packings=st.sampled_from([(), ("int8",), ("int8", "nf4")]),
    main=st.floats(0, 8),
)  # fmt: skip
def test_what_is_fitted_learns_the_same_and_takes_no_more_than_is_free_if_that_can_be(  # noqa: PLR0917
    estimate: None, batch: int, repeats: int, resolution: int, free: float, optimizer: str, shuffled: bool,
    blocks: int, packings: tuple[Packing, ...], main: float,
) -> None:  # fmt: skip
    asked = short_section(
        batch_size=batch,
        accumulation=repeats,
        resolution=resolution,
        optimizer=optimizer,
        shuffle_tags=shuffled,
    )
    ways = Means(blocks, packings, int(main * GIB))
    fitted, words = memory.fit(asked, BASE, free, ways)
    changed = {name for name, value in asked if getattr(fitted, name) != value}
    assert changed <= SAME_RESULT | {"quantise"}
    assert fitted.samples_per_step == asked.samples_per_step
    assert fitted.gradient_checkpointing or not fitted.streamed
    assert memory.waiting_memory(BASE, fitted) <= ways.waiting or not fitted.streamed
    fits = memory.training_memory(BASE, fitted) <= free * GIB
    smallest = [
        asked.model_copy(update={"batch_size": 1, "gradient_checkpointing": True, "cache_captions": True,
                                 "streamed": count / 10, "quantise": packing})
        for packing in ("auto", *packings)
        for count in range(blocks + 1)
    ]  # fmt: skip
    possible = [each for each in smallest if memory.waiting_memory(BASE, each) <= ways.waiting]
    assert fits == any(memory.training_memory(BASE, each) <= free * GIB for each in possible)
    if "gradient_checkpointing" in changed:  # only where nothing that computes once would do
        once = asked.model_copy(update={"batch_size": 1, "cache_captions": True})
        assert memory.SURE * memory.training_memory(BASE, once) > free * GIB
    if fits and "quantise" in changed:  # only where nothing that learns the same would do
        same = [each for each in possible if each.quantise == "auto"]
        assert all(memory.training_memory(BASE, each) > free * GIB for each in same)
    if fits and "streamed" in changed:  # and no block more than it takes
        fewer = fitted.model_copy(update={"streamed": max(0.0, fitted.streamed - 0.1)})
        assert memory.training_memory(BASE, fewer) > free * GIB
    assert fits != ("GiB are needed by the estimate" in words)
    assert bool(words) == (bool(changed) or not fits)


def test_a_smaller_card_takes_less_at_once_and_only_then_computes_twice(estimate: None) -> None:
    asked = short_section(batch_size=8, resolution=1024)
    fitted = [
        memory.fit(asked.model_copy(update={"memory": card}), BASE, None, NOTHING_ELSE)[0]
        for card in ("24gb", "16gb", "12gb", "8gb")
    ]
    ways = [(each.gradient_checkpointing, -each.batch_size) for each in fitted]
    assert ways == sorted(ways)
    assert ways[0][0] is False
    assert ways[-1][0] is True


def test_what_was_done_for_a_card_is_told_in_one_sentence(estimate: None) -> None:
    asked = short_section(batch_size=4, resolution=1024, shuffle_tags=True)
    ways = Means(10, ("int8", "nf4"), 8 * GIB)
    said = {free: memory.fit(asked, BASE, free, ways)[1] for free in (6.0, 5.0, 3.0, 1.1)}
    assert said == {
        6.0: "gradient checkpointing, captions encoded beforehand, batches of 2 in place of 4 (about 6.0 of 6.0 GiB)",
        5.0: "gradient checkpointing, captions encoded beforehand, batches of 1 in place of 4 (about 5.0 of 5.0 GiB)",
        3.0: "gradient checkpointing, captions encoded beforehand, batches of 1 in place of 4, 70% of the blocks streamed "
        "from the computer's memory (about 3.0 of 3.0 GiB)",
        1.1: "gradient checkpointing, captions encoded beforehand, batches of 1 in place of 4, 100% of the blocks streamed "
        "from the computer's memory, the base in nf4, 1.2 GiB are needed by the estimate, and 1.1 GiB are free",
    }
    little = Means(10, ("int8", "nf4"), 0)
    assert "the base in int8" in memory.fit(asked, BASE, 3.0, little)[1]


def test_where_the_estimate_was_wrong_the_base_is_quantised_last_and_never_once_something_is_learned(
    estimate: None,
) -> None:
    ways = Means(10, ("int8", "nf4"), 8 * GIB)
    last = short_section(batch_size=1, gradient_checkpointing=True)
    steps: list[tuple[float, str]] = []
    while smaller := memory.step_down(last, BASE, ways):
        last = smaller
        steps.append((last.streamed, last.quantise))
    assert steps == [(1.0, "auto"), (1.0, "int8"), (1.0, "nf4")]
    assert (
        memory.step_down(short_section(batch_size=1, gradient_checkpointing=True), BASE, NOTHING_ELSE) is None
    )


def test_a_cpu_and_a_fixed_choice_are_left_alone(estimate: None) -> None:
    asked = short_section(batch_size=8, resolution=768)
    assert memory.fit(asked, BASE, None, NOTHING_ELSE) == (asked, "")
    fixed = asked.model_copy(update={"memory": "as_set"})
    assert memory.fit(fixed, BASE, 1.0, NOTHING_ELSE) == (fixed, "")
    assert memory.fit(asked, BASE, 80.0, NOTHING_ELSE) == (asked, "")


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
        def losses(self, batch: Batch) -> Tensor:
            calls[0] += 1
            now[0] += 10.0 if calls[0] > 7 else 1.0
            return super().losses(batch)

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
