"""A whole training on a base that is streamed or quantised, with its pictures, its checkpoints and its file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from lora_foundry.errors import BackendError
from lora_foundry.families._shared.base import Base
from lora_foundry.families._shared.family import Batch
from lora_foundry.families._shared.inspect import find_base
from lora_foundry.families._shared.memory import Means
from lora_foundry.families._shared.parts import Parts
from lora_foundry.ports import TrainingJob
from lora_foundry.trainer import trainer
from lora_foundry.trainer.trainer import InProcessTrainer
from tests.unit.trainer import tiny_bases
from tests.unit.trainer.toy import BASE, ToyModel

pytestmark = pytest.mark.slow
MakeJob = Callable[..., TrainingJob]


class Stopped(Exception):
    """Stands for anything that ends a process between two steps."""


@pytest.fixture(scope="module")
def z_image(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return find_base(str(tiny_bases.z_image_folder(tmp_path_factory.mktemp("base") / "z-image-base")))


def train(base: Base, job: TrainingJob) -> int:
    return InProcessTrainer(base, "cpu").train(job, lambda event: None).resumed_from


def test_a_streamed_base_gives_the_same_file_and_the_same_pictures(
    z_image: Base, make_job: MakeJob, tmp_path: Path
) -> None:
    given = {
        "steps": 4, "checkpoint_every": 2, "saves": 2, "gradient_checkpointing": True, "validation": 0.2,
        "sample_prompts": ["{trigger}, running"], "sample_steps": 2, "learning_rate": 1e-2,
    }  # fmt: skip
    plain, streamed = make_job(tmp_path / "a", **given), make_job(tmp_path / "b", **given, streamed=1.0)
    for job in (plain, streamed):
        train(z_image, job)
    assert plain.output.read_bytes() == streamed.output.read_bytes()
    pictures = [sorted((job.workdir / "samples").glob("*.png")) for job in (plain, streamed)]
    assert len(pictures[0]) == 2
    for one, other in zip(*pictures, strict=True):
        assert np.array_equal(np.asarray(Image.open(one)), np.asarray(Image.open(other)))


def test_a_quantised_base_gives_the_same_kind_of_file_resumes_and_is_another_training(
    z_image: Base, make_job: MakeJob, tmp_path: Path
) -> None:
    given = {
        "steps": 4, "checkpoint_every": 1, "saves": 2, "learning_rate": 1e-2,
        "sample_prompts": ["{trigger}, running"], "sample_steps": 2,
    }  # fmt: skip
    plain = make_job(tmp_path / "plain", **given)
    whole, stopped = (make_job(tmp_path / name, **given, quantise="int8") for name in ("whole", "stopped"))
    train(z_image, plain)
    train(z_image, whole)
    shapes = [{name: (tensor.shape, tensor.dtype) for name, tensor in load_file(job.output).items()}
              for job in (plain, whole)]  # fmt: skip
    assert shapes[0] == shapes[1]
    assert plain.output.read_bytes() != whole.output.read_bytes()
    assert len(list((whole.workdir / "samples").glob("*.png"))) == 2
    said = [safe_open(job.output, "pt").metadata()["lora_foundry.quantised_base"] for job in (plain, whole)]
    assert said == ["None", "int8"]

    def stop(event: Any) -> None:
        if event.done >= 2:
            raise Stopped

    with pytest.raises(Stopped):
        InProcessTrainer(z_image, "cpu").train(stopped, stop)
    assert train(z_image, stopped) > 0
    assert stopped.output.read_bytes() == whole.output.read_bytes()
    # What was learned on weights of 16 bits is not continued on others.
    assert train(z_image, make_job(tmp_path / "plain", **given, quantise="int8")) == 0


def test_captions_encoded_beforehand_learn_the_same_without_text_encoders(
    base: Base, make_job: MakeJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"steps": 4, "shuffle_tags": True, "caption_dropout": 0.3, "validation": 0.2}
    kept, released = make_job(tmp_path / "a", **given), make_job(tmp_path / "b", **given, cache_captions=True)
    let_go: list[bool] = []
    real = Parts.release

    def release(self: Parts, text: bool, vae: bool) -> None:
        let_go.append(text)
        real(self, text, vae)

    monkeypatch.setattr(Parts, "release", release)
    for job in (kept, released):
        train(base, job)
    assert let_go == [False, True]
    assert kept.output.read_bytes() == released.output.read_bytes()


class Squeezed(ToyModel):
    """A toy whose memory holds only a quantised base, from a certain call on."""

    good_calls = 0

    def __init__(self, settings: Any) -> None:
        super().__init__(settings)
        self._small = settings.quantise == "int8"

    def losses(self, batch: Batch) -> Tensor:
        if not self._small:
            if type(self).good_calls == 0:
                raise torch.OutOfMemoryError("CUDA out of memory")
            type(self).good_calls -= 1
        return super().losses(batch)


def test_the_base_is_quantised_where_memory_runs_out_but_not_once_something_is_learned(
    make_job: MakeJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "load_family", lambda base, given, device: Squeezed(given))
    monkeypatch.setattr(trainer, "means", lambda base, given, device: Means(0, ("int8",), 0))
    given = {"steps": 4, "batch_size": 1, "gradient_checkpointing": True, "checkpoint_every": 1}
    job, said = make_job(tmp_path / "a", **given), list[str]()
    InProcessTrainer(BASE, "cpu").train(job, lambda event: said.append(event.message))
    assert "the memory did not suffice; going on with the base in int8" in said
    monkeypatch.setattr(Squeezed, "good_calls", 2)
    with pytest.raises(BackendError, match="memory is too small"):
        InProcessTrainer(BASE, "cpu").train(make_job(tmp_path / "b", **given), lambda event: None)
