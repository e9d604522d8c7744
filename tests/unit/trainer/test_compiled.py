"""Compiled blocks beside blocks that are not: what they learn, how often torch compiles, and what becomes of a training
where that fails. Most of it goes by a back end that only takes a block's operations down, forward and backward, as every
other one begins; the one that writes C++ takes seconds for each block and compiles a small one."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from lora_foundry.families._shared.base import Base
from lora_foundry.families._shared.family import Batch
from lora_foundry.families._shared.inspect import find_base
from lora_foundry.families._shared.targets import DENOISER, Target
from lora_foundry.ports import TrainingJob
from lora_foundry.trainer import compiled, trainer
from lora_foundry.trainer.compiled import Compiled, can_compile, obstacle
from lora_foundry.trainer.fused import fuse
from lora_foundry.trainer.lora import NAME, Adapter
from lora_foundry.trainer.trainer import InProcessTrainer
from tests.unit.trainer import tiny_bases
from tests.unit.trainer.conftest import short_section

WIDTH = 16
DIFFERENT = "they gave other gradients than computing as usual"


class Block(nn.Module):
    """Two layers, a norm and something to compute between them."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(3 * WIDTH, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(nn.functional.gelu(self.up(self.norm(x))))


class Network(nn.Module):
    _repeated_blocks = ("Block",)

    def __init__(self, blocks: int = 3) -> None:
        super().__init__()
        self.first = nn.Linear(WIDTH, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(blocks))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        return x


class Learner:
    """A network with a LoRA on every layer, the same each time that one is made."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.network = Network().requires_grad_(False).to(dtype)
        layers = [name for name, layer in self.network.named_modules() if type(layer) is nn.Linear]
        targets = [Target(DENOISER, name) for name in layers]
        self.adapter = Adapter({DENOISER: self.network}, targets, short_section(), 3)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for tensor in self.adapter.parameters():
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.3)
        self.dtype, self.fused = dtype, 0

    def __call__(self, batch: Batch) -> Tensor:
        answer = self.network(batch.latents.flatten(2).to(self.dtype))
        loss = (answer.float() - batch.noise.flatten(2)).square().mean()
        loss.backward()
        return loss.detach()

    def compiled(self) -> Compiled:
        def instead() -> None:
            self.fused += fuse(self.network, NAME)

        return Compiled(self, self.network, self.adapter.gradients(), instead)

    def gradients(self) -> list[Tensor]:
        return [tensor.grad for tensor in self.adapter.parameters() if tensor.grad is not None]


def part(count: int = 2, places: int = 4, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    latents, noise = (torch.randn(count, places, 4, WIDTH // 4, generator=generator) for _ in range(2))
    return Batch(latents, {}, noise, torch.zeros(count))


def compare(learner: Learner, tolerance: float, *batches: Batch) -> None:
    """Batches one after another, whose gradients add up, with compiled blocks and as usual."""
    plain, computing = Learner(learner.dtype), learner.compiled()
    places = [tensor.data_ptr() for tensor in learner.gradients()]
    for batch in batches:
        assert computing(batch).item() == pytest.approx(plain(batch).item(), rel=tolerance)
        for found, expected in zip(learner.gradients(), plain.gradients(), strict=True):
            assert (found - expected).norm() <= tolerance * expected.norm()
    assert [tensor.data_ptr() for tensor in learner.gradients()] == places


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The sentences of ours; torch's compiler has many of its own."""
    return [record.message for record in caplog.records if record.name == compiled.__name__]


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[], int]:
    """How many graphs were compiled since the test began, by the back end that compiles nothing further."""
    from torch._dynamo import reset
    from torch._dynamo.utils import counters

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    monkeypatch.setattr(compiled, "_BACKEND", "aot_eager")
    reset()
    counters.clear()
    return lambda: int(counters["stats"]["unique_graphs"])


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.02)])
def test_a_block_is_compiled_once_for_all_its_like(
    counted: Callable[[], int], dtype: torch.dtype, tolerance: float, caplog: pytest.LogCaptureFixture
) -> None:
    learner = Learner(dtype)
    compare(learner, tolerance, *(part(seed=seed) for seed in range(3)))
    assert counted() == 1
    assert not said(caplog)
    assert learner.fused == 0


@pytest.mark.slow
def test_a_second_shape_is_compiled_for_all_that_follow(counted: Callable[[], int]) -> None:
    compare(Learner(), 1e-5, *(part(places=places) for places in (4, 5, 6, 7, 4)))
    assert counted() == 2


@pytest.mark.slow
def test_what_is_not_a_training_step_is_not_compiled(counted: Callable[[], int]) -> None:
    learner = Learner()
    computing = learner.compiled()
    learner(part())
    assert counted() == 0
    computing(part())
    assert counted() == 1
    with torch.no_grad():
        learner.network(torch.ones(1, 7, WIDTH))
    assert counted() == 1


@pytest.mark.slow
def test_written_in_cpp_it_learns_the_same(
    counted: Callable[[], int], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from torch._inductor import config

    monkeypatch.setattr(compiled, "_BACKEND", "inductor")
    learner = Learner()
    # Neither wide instructions, which it would try out first, nor headers that pay only for many kernels.
    with config.patch({"cpp.vec_isa_ok": False, "cpp_cache_precompile_headers": False}):
        compare(learner, 1e-4, part(), part(seed=1))
    assert (counted(), learner.fused) == (1, 0)
    assert not said(caplog)


@pytest.mark.slow
def test_without_a_compiler_it_goes_on_as_usual(
    counted: Callable[[], int], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from torch._inductor import config

    monkeypatch.setattr(compiled, "_BACKEND", "inductor")
    learner = Learner()
    with config.patch({"cpp.cxx": ("no-such-compiler",)}), caplog.at_level(logging.WARNING):
        compare(learner, 1e-5, part(), part(seed=1), part(places=5))
    (sentence,) = said(caplog)
    assert "not compiled but computed as usual: " in sentence
    assert "No working C++ compiler found" in sentence
    assert "TORCHDYNAMO_VERBOSE" not in sentence
    assert learner.fused == 7


class Broken:
    """Stands in for `torch.compile`: blocks that give `times` of what they should, or fail on the way back."""

    def __init__(self, error: BaseException | None = None, times: float = 1.0) -> None:
        self.error, self.times, self.calls = error, times, 0

    def __call__(self, forward: Callable[..., Tensor], **_: Any) -> Callable[..., Tensor]:
        def computed(x: Tensor) -> Tensor:
            self.calls += 1
            if self.error is not None and self.calls == 1:  # the last one on the way back
                x.register_hook(self.fail)
            return forward(x) * self.times

        return computed

    def fail(self, _: Tensor) -> Tensor:
        assert self.error is not None
        raise self.error


@pytest.mark.parametrize(
    ("broken", "why"),
    [
        (Broken(RuntimeError("no\nsuch kernel")), "RuntimeError: no such kernel"),
        (Broken(OSError("no space left")), "OSError: no space left"),
        (Broken(times=1.5), DIFFERENT),
        (Broken(times=float("nan")), DIFFERENT),
    ],
    ids=["error", "disk", "wrong", "nan"],
)
def test_what_fails_or_is_wrong_leaves_nothing_behind(
    broken: Broken, why: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch, "compile", broken)
    learner = Learner()
    compare(learner, 1e-5, part(), part(seed=1), part(places=5))
    assert said(caplog) == [f"The base's blocks are not compiled but computed as usual: {why}."]
    assert (broken.calls, learner.fused) == (3, 7)


def test_too_little_memory_is_for_the_trainer_to_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", Broken(torch.OutOfMemoryError("CUDA out of memory")))
    learner = Learner()
    with pytest.raises(torch.OutOfMemoryError):
        learner.compiled()(part())
    assert learner.fused == 0


def test_gradients_too_large_for_their_type_decide_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    broken = Broken()
    monkeypatch.setattr(torch, "compile", broken)
    learner = Learner()
    computing = learner.compiled()
    infinite = part()
    infinite.latents.fill_(float("inf"))
    computing(infinite)
    assert not said(caplog)
    learner.adapter.zero_gradients()
    broken.times = 1.5
    computing(part())
    assert [DIFFERENT in sentence for sentence in said(caplog)] == [True]


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({}, ""),
        ({"gradient_checkpointing": True}, ""),
        ({"network": "dora"}, "train.network"),
        ({"quantise": "int8"}, "quantised"),
        ({"streamed": 0.5, "gradient_checkpointing": True}, "streamed"),
        ({"text_encoder_rate": 1e-4}, "text encoders"),
    ],
)
def test_where_it_is_done(settings: dict[str, object], why: str) -> None:
    model: Any = SimpleNamespace(recordable=False, network=Network())
    section = short_section(compile_blocks=True, **settings)
    assert why in obstacle(section, model)
    assert can_compile(section, model) is (why == "")
    assert not can_compile(short_section(**settings), model)
    for other in (
        SimpleNamespace(recordable=True, network=Network()),
        SimpleNamespace(recordable=False, network=Block()),
    ):
        assert not can_compile(section, other)


def test_a_base_that_cannot_is_trained_as_usual_and_told(
    base: Base, make_job: Callable[..., TrainingJob], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    jobs = [make_job(tmp_path / str(on), steps=2, compile_blocks=on) for on in (False, True)]
    for job in jobs:
        assert not caplog.records
        InProcessTrainer(base, "cpu").train(job, lambda _: None)
    assert [record.message for record in caplog.records] == [
        "The base's blocks are not compiled: the base is no transformer."
    ]
    assert jobs[0].output.read_bytes() == jobs[1].output.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_a_training_with_it_on_learns_nearly_the_same(
    device: str,
    counted: Callable[[], int],
    make_job: Callable[..., TrainingJob],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """With checkpointing, by which a block is computed anew on its way back, in 16 bits, with a picture on the way."""
    monkeypatch.setattr(compiled, "_BACKEND", {"cpu": "aot_eager", "cuda": "inductor"}[device])
    base = find_base(str(tiny_bases.z_image_folder(tmp_path / "z-image-base")))
    given = {
        "steps": 4, "gradient_checkpointing": True, "precision": "bf16", "saves": 1, "validation": 0.2,
        "sample_prompts": ["{trigger}, running"], "sample_steps": 1, "checkpoint_every": 4,
    }  # fmt: skip
    plain, other = make_job(tmp_path / "a", **given), make_job(tmp_path / "b", **given, compile_blocks=True)
    InProcessTrainer(base, device).train(plain, lambda _: None)
    assert counted() == 0
    fused: list[object] = []
    monkeypatch.setattr(trainer, "fuse", lambda *given: fused.append(given))
    InProcessTrainer(base, device).train(other, lambda _: None)
    # One kind of block in three places: on pictures, on captions, on both; in a network of four.
    assert counted() == 3
    assert not fused
    assert not said(caplog)
    tensors = [load_file(job.output) for job in (plain, other)]
    one, two = (torch.cat([each.flatten().float() for _, each in sorted(found.items())]) for found in tensors)
    assert torch.nn.functional.cosine_similarity(one, two, dim=0) > 0.98
