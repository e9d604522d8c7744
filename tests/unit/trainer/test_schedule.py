"""The learning rate as a function of the step."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_foundry.domain.sections import TrainSection
from lora_foundry.ports import TrainingImage
from lora_foundry.trainer.schedule import rate_factor, total_steps


def section(**settings: object) -> TrainSection:
    return TrainSection.model_validate({"warmup_steps": 0, **settings})


def test_warm_up_rises_evenly_and_then_the_peak_is_reached() -> None:
    settings = section(lr_schedule="constant", warmup_steps=4)
    factors = [rate_factor(settings, step, 100) for step in range(6)]
    assert factors == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])


def test_a_warm_up_longer_than_the_run_leaves_room_for_training() -> None:
    settings = section(lr_schedule="constant", warmup_steps=100)
    assert rate_factor(settings, 2, 8) == 1.0


def test_cosine_starts_at_the_peak_passes_half_and_ends_near_zero() -> None:
    settings = section(lr_schedule="cosine")
    assert rate_factor(settings, 0, 100) == 1.0
    assert rate_factor(settings, 50, 100) == pytest.approx(0.5)
    assert rate_factor(settings, 99, 100) < 0.001


def test_restarts_go_back_to_the_peak() -> None:
    settings = section(lr_schedule="cosine_with_restarts", restarts=3)
    factors = [rate_factor(settings, step, 90) for step in range(90)]
    assert [step for step, factor in enumerate(factors) if factor == 1.0] == [0, 30, 60]
    assert factors[29] < 0.01


def test_restarts_belong_to_their_schedule_only() -> None:
    settings = section(lr_schedule="cosine", restarts=3)
    assert [rate_factor(settings, step, 90) for step in range(90)].count(1.0) == 1


@given(
    schedule=st.sampled_from(["constant", "cosine", "cosine_with_restarts"]),
    total=st.integers(1, 300),
    warmup=st.integers(0, 400),
    restarts=st.integers(1, 5),
)
def test_every_step_of_every_schedule_has_a_rate_between_nothing_and_the_peak(
    schedule: str, total: int, warmup: int, restarts: int
) -> None:
    settings = section(lr_schedule=schedule, warmup_steps=warmup, restarts=restarts)
    factors = [rate_factor(settings, step, total) for step in range(total)]
    assert all(0 <= factor <= 1 for factor in factors)
    assert sum(factors) > 0


def test_steps_come_from_epochs_repeats_and_batch_size_unless_given() -> None:
    images = [TrainingImage(Path(f"{number}.png"), "a", 10) for number in range(7)]
    assert (
        total_steps(section(epochs=3, batch_size=4), images) == 53
    )  # 210 samples in fours, the last not full
    assert total_steps(section(epochs=3, batch_size=4, steps=5), images) == 5
