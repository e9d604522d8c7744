"""A few pictures with captions, and jobs of a few steps on the bundled model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lora_foundry.domain.sections import TrainSection
from lora_foundry.families._shared.base import Base
from lora_foundry.families._shared.inspect import find_base
from lora_foundry.ports import TrainingImage, TrainingJob


@pytest.fixture(scope="session")
def base() -> Base:
    return find_base("mini")


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainingImage, ...]:
    """Five pictures; one is of another size and one has transparency."""
    folder = tmp_path_factory.mktemp("pictures")
    images = []
    for number in range(5):
        rng = np.random.default_rng(number)
        size = (96, 80) if number == 3 else (64, 64)
        flat = np.full((*size[::-1], 3), rng.integers(0, 255, 3), dtype=np.uint8)
        flat[10:40, 20:50] = rng.integers(0, 255, 3)
        picture = Image.fromarray(flat)
        if number == 4:
            picture.putalpha(128)
        path = folder / f"elara_{number:03d}.png"
        picture.save(path)
        images.append(TrainingImage(path, f"elara, tag {number}, running, best quality", 1))
    return tuple(images)


@pytest.fixture(scope="session")
def make_job(pictures: tuple[TrainingImage, ...]) -> Callable[..., TrainingJob]:
    """A job in a folder, with settings that can be changed one by one."""

    def make(folder: Path, **settings: object) -> TrainingJob:
        return TrainingJob(
            images=pictures,
            settings=short_section(**settings),
            trigger="elara",
            output=folder / "lora.safetensors",
            workdir=folder / "training",
            metadata={"ss_output_name": "elara_mini"},
        )

    return make


def short_section(**settings: object) -> TrainSection:
    """Six steps of two pictures, with no export on the way."""
    given: dict[str, object] = {
        "rank": 4, "alpha": 4.0, "steps": 6, "batch_size": 2, "learning_rate": 2e-3, "lr_schedule": "cosine",
        "warmup_steps": 1, "resolution": 64, "precision": "fp32", "checkpoint_every": 2, "min_snr_gamma": 0.0,
        "seed": 7, "saves": 0,
    }  # fmt: skip
    return TrainSection.model_validate(given | settings)
