"""A checkpoint file of Stable Diffusion 1.x's layout, tiny, all the way: trained, exported, loaded, drawn with."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from lora_foundry.families._shared.inspect import find_base
from lora_foundry.families._shared.loading import load_pipeline, quiet_libraries
from lora_foundry.ports import TrainingJob
from lora_foundry.trainer import metadata
from lora_foundry.trainer.trainer import InProcessTrainer
from tests.unit.families.conftest import own_configuration, tiny_file, tiny_folder

pytestmark = pytest.mark.slow

__all__ = ["own_configuration", "tiny_file", "tiny_folder"]


def draw(pipeline: Any) -> np.ndarray[Any, Any]:
    generator = torch.Generator().manual_seed(3)
    result = pipeline(
        "elara", num_inference_steps=2, generator=generator, output_type="np", width=64, height=64
    )
    return np.asarray(result.images[0])


@pytest.mark.usefixtures("own_configuration")
def test_a_checkpoint_file_is_trained_and_its_lora_loads(
    tiny_file: Path,
    make_job: Callable[..., TrainingJob],
    tmp_path: Path,
) -> None:
    base = find_base(str(tiny_file))
    job = make_job(tmp_path, min_snr_gamma=5.0, learning_rate=0.1, precision="fp16", steps=3)
    result = InProcessTrainer(base, "cpu").train(job, lambda event: None)
    with safe_open(result.path, "pt") as file:
        written, names = file.metadata(), set(file.keys())
    data = tiny_file.read_bytes()
    assert written["ss_new_sd_model_hash"] == hashlib.sha256(data).hexdigest()
    assert written["ss_sd_model_hash"] == hashlib.sha256(data[0x100000:0x110000]).hexdigest()[:8]
    assert written["modelspec.prediction_type"] == "epsilon"
    assert written["ss_sd_model_name"] == "tiny.safetensors"
    assert len(names) == 3 * 192

    pipeline: Any = load_pipeline(base, torch.float32, "cpu")
    before = draw(pipeline)
    with quiet_libraries():
        pipeline.load_lora_weights(result.path)
    assert np.abs(draw(pipeline) - before).max() > 0.01


@pytest.mark.usefixtures("own_configuration")
def test_the_checkpoint_is_hashed_once_for_all_exports(
    tiny_file: Path,
    make_job: Callable[..., TrainingJob],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Several gigabytes are read for it, so each export that did so again would cost seconds."""
    hashed: list[str] = []
    digest = hashlib.file_digest

    def noted(file: Any, name: str) -> Any:
        hashed.append(file.name)
        return digest(file, name)

    monkeypatch.setattr(hashlib, "file_digest", noted)
    metadata._file_hashes.cache_clear()
    trained = InProcessTrainer(find_base(str(tiny_file)), "cpu").train(
        make_job(tmp_path, steps=3, saves=3), lambda event: None
    )
    assert len(trained.saved) == 3
    assert [Path(name).name for name in hashed].count(tiny_file.name) == 1
