"""Recording and playing back, with a recorder that computes nothing while it takes a computation down and computes anew
whenever it is played. That shows which tensors are read, when, and what becomes of the result; what a GPU refuses to
record only a GPU shows: there `test_on_a_gpu` compares whole trainings."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lora_foundry.families._shared.base import Base
from lora_foundry.families._shared.family import Batch, load_family
from lora_foundry.ports import TrainingJob
from lora_foundry.trainer import cuda_graphs, trainer
from lora_foundry.trainer.cuda_graphs import CudaRecorder, Recorded, can_record
from lora_foundry.trainer.trainer import InProcessTrainer
from tests.unit.trainer.conftest import short_section

CPU = torch.device("cpu")


class FakeRecorder:
    def __init__(self, fails: bool = False) -> None:
        self.fails, self.taken, self.played = fails, 0, 0

    def __call__(self, compute: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        if self.fails:
            raise RuntimeError("operation not permitted when stream is capturing")
        self.taken += 1
        result = torch.full((), float("nan"))

        def play() -> None:
            self.played += 1
            result.copy_(compute())

        return play, result


def part(count: int = 1, value: float = 1.0, masked: bool = False, words: int = 3) -> Batch:
    latents = torch.full((count, 4, 2, 2), value)
    mask = torch.ones(count, 1, 2, 2) if masked else None
    return Batch(latents, {"text": torch.ones(count, words, 5)}, latents + 1, latents[:, 0, 0, 0], mask, None)


def compute(given: Batch) -> Tensor:
    return given.latents.sum() + 10 * given.noise.mean() + 100 * len(given.condition["text"][0])


def test_what_is_played_is_what_would_be_computed() -> None:
    recorder = FakeRecorder()
    recorded = Recorded(compute, recorder, CPU)
    results = [recorded(part(value=float(value))) for value in range(8)]
    assert [result.item() for result in results] == [compute(part(value=float(v))).item() for v in range(8)]
    assert (recorder.taken, recorder.played) == (1, 5)  # the first three are computed as usual


def test_each_shape_is_recorded_by_itself() -> None:
    recorder = FakeRecorder()
    recorded = Recorded(compute, recorder, CPU)
    shapes = [part(), part(2), part(masked=True), part(words=7)]
    for _ in range(5):
        for shape in shapes:
            assert recorded(shape).item() == compute(shape).item()
    assert (recorder.taken, recorder.played) == (4, 8)


def test_more_shapes_than_are_kept_are_computed_as_usual(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_graphs, "_MOST", 1)
    recorder = FakeRecorder()
    recorded = Recorded(compute, recorder, CPU)
    for _ in range(6):
        for count in (1, 2):
            assert recorded(part(count)).item() == compute(part(count)).item()
    assert (recorder.taken, recorder.played) == (1, 3)


def test_what_cannot_be_recorded_goes_on_as_usual(caplog: pytest.LogCaptureFixture) -> None:
    recorded = Recorded(compute, FakeRecorder(fails=True), CPU)
    with caplog.at_level(logging.WARNING):
        for value in range(6):
            assert recorded(part(value=float(value))).item() == compute(part(value=float(value))).item()
    assert len(caplog.records) == 1
    assert "computed as usual: operation not permitted" in caplog.text


@pytest.mark.parametrize(
    ("settings", "device", "able"),
    [
        ({"cuda_graphs": True}, "cuda", True),
        ({"cuda_graphs": True}, "cpu", False),
        ({"cuda_graphs": False}, "cuda", False),
        ({"cuda_graphs": True, "gradient_checkpointing": True}, "cuda", False),
        ({"cuda_graphs": True, "text_encoder_rate": 1e-4}, "cuda", False),
    ],
)
def test_where_it_is_done(base: Base, settings: dict[str, object], device: str, able: bool) -> None:
    section = short_section(**settings)
    model = load_family(base, section, CPU)
    assert can_record(section, model, torch.device(device)) is able
    model.recordable = False
    assert not can_record(section, model, torch.device(device))


def test_a_recording_of_nothing_does_not_pass_for_a_step() -> None:
    recorded = Recorded(compute, lambda _: (lambda: None, torch.zeros(())), CPU)
    assert [recorded(part()).isnan().item() for _ in range(5)] == [False, False, False, True, True]


def trained(base: Base, job: TrainingJob, device: str) -> str:
    InProcessTrainer(base, device).train(job, lambda _: None)
    return hashlib.sha256(job.output.read_bytes()).hexdigest()


@pytest.mark.slow
@pytest.mark.parametrize("extra", [{}, {"buckets": True, "accumulation": 2, "optimizer": "adafactor"}])
def test_a_training_by_playback_gives_the_same_file(
    base: Base,
    make_job: Callable[..., TrainingJob],
    tmp_path: Path,
    extra: dict[str, object],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given: dict[str, object] = {"steps": 8, "checkpoint_every": 8, **extra}
    plain = trained(base, make_job(tmp_path / "a", **given), "cpu")
    recorder = FakeRecorder()
    monkeypatch.setattr(trainer, "can_record", lambda *_: True)
    monkeypatch.setattr(trainer, "CudaRecorder", lambda _: recorder)
    assert trained(base, make_job(tmp_path / "b", **given), "cpu") == plain
    assert recorder.played > 0


@pytest.mark.slow
def test_who_asks_for_it_where_it_cannot_be_is_told(
    base: Base, make_job: Callable[..., TrainingJob], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trained(base, make_job(tmp_path, steps=2, cuda_graphs=True), "cpu")
    assert "train.cuda_graphs is without effect: it needs a CUDA device" in caplog.text


@pytest.mark.slow
@pytest.mark.gpu
@pytest.mark.parametrize("extra", [{"precision": "bf16"}, {"precision": "fp16"}, {"buckets": True}])
def test_on_a_gpu(
    base: Base,
    make_job: Callable[..., TrainingJob],
    tmp_path: Path,
    extra: dict[str, object],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """On the last of the GPUs: a recording is easily made on the wrong one."""
    device = f"cuda:{torch.cuda.device_count() - 1}"
    taken: list[torch.Tensor] = []
    record = CudaRecorder.__call__

    def noted(self: CudaRecorder, computation: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        play, loss = record(self, computation)
        taken.append(loss)
        return play, loss

    monkeypatch.setattr(CudaRecorder, "__call__", noted)
    plain = trained(base, make_job(tmp_path / "a", **extra, steps=20), device)
    assert not taken
    assert trained(base, make_job(tmp_path / "b", **extra, steps=20, cuda_graphs=True), device) == plain
    assert taken
    assert all(loss.isfinite() for loss in taken)  # NaN until it is played
    assert "computed as usual" not in caplog.text
