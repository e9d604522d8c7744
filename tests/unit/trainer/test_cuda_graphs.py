"""Recording and playing back, with a recorder that computes nothing while it takes a computation down and computes anew
whenever it is played. That shows which tensors are read, when, and what becomes of the result; what a GPU refuses to
record only a GPU shows: there `test_on_a_gpu` compares whole trainings."""

from __future__ import annotations

import hashlib
import logging
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from lora_foundry.families._shared.base import Base
from lora_foundry.families._shared.family import Batch, load_family
from lora_foundry.ports import TrainingJob
from lora_foundry.trainer import cuda_graphs, trainer
from lora_foundry.trainer.cuda_graphs import CudaRecorder, Recorded, Recorder, can_record
from lora_foundry.trainer.trainer import InProcessTrainer
from tests.unit.trainer.conftest import short_section

CPU = torch.device("cpu")


class FakeRecorder:
    """error: raised in place of taking a computation down; times: how often a playback computes."""

    def __init__(self, error: BaseException | None = None, times: int = 1) -> None:
        self.error, self.times, self.taken, self.played = error, times, 0, 0

    def __call__(self, compute: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        if self.error is not None:
            raise self.error
        self.taken += 1
        result = torch.full((), float("nan"))

        def play() -> None:
            self.played += 1
            for _ in range(self.times):
                result.copy_(compute())

        return play, result


def part(count: int = 1, value: float = 1.0, masked: bool = False, words: int = 3) -> Batch:
    latents = torch.full((count, 4, 2, 2), value)
    mask = torch.ones(count, 1, 2, 2) if masked else None
    return Batch(latents, {"text": torch.ones(count, words, 5)}, latents + 1, latents[:, 0, 0, 0], mask, None)


class Learner:
    """Something to compute that adds to a gradient."""

    def __init__(self) -> None:
        self.gradient = torch.zeros(2)

    def __call__(self, given: Batch) -> Tensor:
        self.gradient += torch.stack([given.latents.sum(), given.noise.mean()])
        return given.latents.sum() + 10 * given.noise.mean() + 100 * len(given.condition["text"][0])

    def recorded(self, recorder: Recorder, marker: Path | None = None) -> Recorded:
        return Recorded(self, recorder, CPU, [self.gradient], marker)


def compared(recorder: Recorder, batches: Sequence[Batch], marker: Path | None = None) -> None:
    """Batch after batch with a recorder, whose losses and gradients must be those of computing."""
    plain, learner = Learner(), Learner()
    recorded = learner.recorded(recorder, marker)
    for batch in batches:
        assert recorded(batch).item() == plain(batch).item()
        assert learner.gradient.tolist() == plain.gradient.tolist()


def test_what_is_played_is_what_would_be_computed() -> None:
    recorder = FakeRecorder()
    compared(recorder, [part(value=float(value)) for value in range(8)])
    assert (recorder.taken, recorder.played) == (1, 5)  # the first three are computed as usual


def test_each_shape_is_recorded_by_itself() -> None:
    recorder = FakeRecorder()
    compared(recorder, [part(), part(2), part(masked=True), part(words=7)] * 5)
    assert (recorder.taken, recorder.played) == (4, 8)


def test_more_shapes_than_are_kept_are_computed_as_usual(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_graphs, "_MOST", 1)
    recorder = FakeRecorder()
    compared(recorder, [part(), part(2)] * 6)
    assert (recorder.taken, recorder.played) == (1, 3)


def test_what_cannot_be_recorded_goes_on_as_usual(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        error = RuntimeError("operation not permitted when stream is capturing")
        compared(FakeRecorder(error), [part(value=float(value)) for value in range(6)])
    assert len(caplog.records) == 1
    assert "computed as usual: operation not permitted" in caplog.text


def empty(_: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
    return lambda: None, torch.zeros(())


@pytest.mark.parametrize("recorder", [empty, FakeRecorder(times=2)], ids=["nothing", "twice"])
def test_a_recording_that_gives_something_else_is_dropped(
    recorder: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    compared(recorder, [part(value=float(value)) for value in range(6)])
    assert [record.message for record in caplog.records] == [
        "The training's steps are not recorded as CUDA graphs but computed as usual: a playback gave other gradients than "
        "computing."
    ]


def test_a_torch_that_gives_no_memory_back_after_it_costs_no_training(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As one before 2.13 where a recording has failed, for the rest of the process."""

    def refuse() -> None:
        raise RuntimeError("captures_underway.empty() INTERNAL ASSERT FAILED")

    monkeypatch.setattr(torch.cuda, "empty_cache", refuse)
    compared(FakeRecorder(RuntimeError("operation not permitted when stream is capturing")), [part()] * 6)


@pytest.mark.parametrize("fails", [True, False], ids=["no room", "twice"])
def test_what_is_given_up_is_gone_when_its_memory_is_given_back(
    fails: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[weakref.ref[Tensor]] = []
    held: list[int] = []

    def record(compute: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        play, loss = FakeRecorder(times=2)(compute)
        made.append(weakref.ref(loss))
        if fails:
            raise RuntimeError("they would take 2.0 GiB of the 3.0 that are free")
        return play, loss

    def look() -> None:
        held.append(sum(each() is not None for each in made))

    monkeypatch.setattr(torch.cuda, "empty_cache", look)
    compared(record, [part()] * 6)
    assert (len(made), held) == (1, [0])


def test_gradients_too_large_for_their_type_decide_nothing() -> None:
    recorder, learner = FakeRecorder(), Learner()
    recorded = learner.recorded(recorder)
    for value in (*[float("inf")] * 5, *range(1, 6)):
        learner.gradient.zero_()
        recorded(part(value=float(value)))
    assert recorder.taken == 2
    assert recorder.played == 1 + 3  # in vain with the fourth, which made it wait for three more


def test_after_a_death_while_recording_nothing_is_recorded(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    marker = tmp_path / "recording"
    compared(FakeRecorder(), [part()] * 6, marker)
    assert not marker.exists()
    with pytest.raises(KeyboardInterrupt):
        compared(FakeRecorder(KeyboardInterrupt()), [part()] * 6, marker)
    again = FakeRecorder()
    compared(again, [part()] * 6, marker)
    assert again.taken == 0
    assert (
        f"an earlier attempt in this folder ended while it recorded them (without {marker} they are tried"
        in caplog.text
    )


class FakeCuda(SimpleNamespace):
    """What of `torch.cuda` a recording asks for. left: the memory that is free after it, of 10 GiB before."""

    def __init__(self, left: int) -> None:
        super().__init__(stream="usual", memory=[(gib * 2**30, 0) for gib in (10, left)])
        self.empty_cache, self.graph_pool_handle, self.CUDAGraph = (lambda: None), object, object
        self.device, self.mem_get_info = nullcontext, lambda _: self.memory.pop(0)
        self.current_stream, self.set_stream = lambda: self.stream, partial(setattr, self, "stream")

    @contextmanager
    def graph(self, graph: object, pool: object) -> Iterator[None]:
        """Leaves its own stream in place where what is recorded fails."""
        self.stream = "recording"
        yield
        self.stream = "usual"


@pytest.mark.parametrize(("left", "taken"), [(4, False), (5, False), (6, True), (9, True)])
def test_a_recording_leaves_one_and_a_half_times_its_memory(
    left: int, taken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "cuda", FakeCuda(left))
    words = f"they would take {10 - left}.0 GiB of the 10.0 that are free"
    with nullcontext() if taken else pytest.raises(RuntimeError, match=words):
        CudaRecorder(CPU)(lambda: torch.ones(()))


def test_a_recording_that_fails_leaves_the_stream_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeCuda(9)
    monkeypatch.setattr(torch, "cuda", fake)

    def fail() -> Tensor:
        assert fake.stream == "recording"
        raise RuntimeError("operation not permitted when stream is capturing")

    with pytest.raises(RuntimeError, match="not permitted"):
        CudaRecorder(CPU)(fail)
    assert fake.stream == "usual"


@pytest.mark.parametrize(
    ("settings", "device", "able"),
    [
        ({}, "cuda", True),
        ({}, "cpu", False),
        ({"cuda_graphs": False}, "cuda", False),
        ({"gradient_checkpointing": True}, "cuda", False),
        ({"text_encoder_rate": 1e-4}, "cuda", False),
    ],
)
def test_where_it_is_done(base: Base, settings: dict[str, object], device: str, able: bool) -> None:
    section = short_section(**settings)
    model = load_family(base, section, CPU)
    assert can_record(section, model, torch.device(device)) is able
    model.recordable = False
    assert not can_record(section, model, torch.device(device))


def trained(base: Base, job: TrainingJob, device: str) -> str:
    InProcessTrainer(base, device).train(job, lambda _: None)
    return hashlib.sha256(job.output.read_bytes()).hexdigest()


@pytest.mark.slow
@pytest.mark.parametrize(
    "extra", [{}, {"buckets": True, "accumulation": 2, "optimizer": "adafactor"}, {"precision": "bf16"}]
)
def test_a_training_by_playback_gives_the_same_file(
    base: Base,
    make_job: Callable[..., TrainingJob],
    tmp_path: Path,
    extra: dict[str, object],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    given: dict[str, object] = {"steps": 8, "checkpoint_every": 8, **extra}
    plain = trained(base, make_job(tmp_path / "a", **given), "cpu")
    assert not caplog.records
    recorder = FakeRecorder()
    monkeypatch.setattr(trainer, "can_record", lambda *_: True)
    monkeypatch.setattr(trainer, "CudaRecorder", lambda _: recorder)
    assert trained(base, make_job(tmp_path / "b", **given), "cpu") == plain
    assert recorder.played > 1
    assert not caplog.records


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
    plain = trained(base, make_job(tmp_path / "a", **extra, steps=20, cuda_graphs=False), device)
    assert not taken
    assert trained(base, make_job(tmp_path / "b", **extra, steps=20), device) == plain
    assert taken
    assert all(loss.isfinite() for loss in taken)  # NaN until it is played
    assert "computed as usual" not in caplog.text
