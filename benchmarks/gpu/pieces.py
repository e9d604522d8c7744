"""The pieces. Each takes where it computes and gives its figures; what is wrong stands in them under "wrong", one sentence
for each, and fails the run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.cards import measure_cards
from benchmarks.random_checkpoint import make_sd15
from benchmarks.same_bytes import SHORT, make_pictures
from lora_foundry.domain.sections import TrainSection
from lora_foundry.families._shared.family import load_family
from lora_foundry.families._shared.inspect import Base, find_base
from lora_foundry.families._shared.memory import training_memory
from lora_foundry.ports import TrainingImage, TrainingJob
from lora_foundry.trainer.trainer import InProcessTrainer, prepare

Figures = dict[str, Any]
ROOT = Path(__file__).parents[2]
GIB = 1 << 30


@dataclass(frozen=True)
class Place:
    """Where a piece computes. `small`: the miniature in place of a base of full size, to rehearse on a CPU."""

    device: str
    small: bool
    work: Path

    def base(self) -> Base:
        """The base whose figures count: Stable Diffusion 1.5 with random weights, or the miniature."""
        return find_base("mini" if self.small else str(make_sd15(self.work / "sd15_random.safetensors")))

    def settings(self, **given: object) -> TrainSection:
        """A short training, at the size of the base."""
        size = 64 if self.small else 512
        return TrainSection.model_validate(
            SHORT | {"resolution": size, "rank": 32, "alpha": 16.0, "saves": 0} | given
        )

    def job(self, name: str, images: tuple[TrainingImage, ...], **given: object) -> TrainingJob:
        folder = Path(tempfile.mkdtemp(dir=self.work, prefix=name))
        settings = self.settings(**given)
        return TrainingJob(images, settings, "elara", folder / "lora.safetensors", folder, {})

    def pictures(self) -> tuple[TrainingImage, ...]:
        return make_pictures(Path(tempfile.mkdtemp(dir=self.work)))


def run_tests(place: Place) -> Figures:
    """The tests that need a GPU, and those of trainer and families beside them."""
    chosen = ["-m", "gpu"] if not place.small else ["tests/unit/trainer/test_fused.py"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *chosen, "-p", "no:cacheprovider"],
        capture_output=True, text=True, check=False, cwd=ROOT,
    )  # fmt: skip
    last = done.stdout.strip().splitlines()[-1:] or [done.stderr.strip()[-200:]]
    return {
        "pytest": last[0],
        "wrong": [] if done.returncode == 0 else [f"pytest failed: {done.stdout[-1500:]}"],
    }


def compare_with_cpu(place: Place) -> Figures:
    """The miniature's losses in every number format beside the CPU's in fp32, step by step with the same noise."""
    images, found, wrong = place.pictures(), {}, list[str]()

    def losses(device: str, precision: str, **more: object) -> list[float]:
        job = place.job("compare", images, precision=precision, resolution=64, steps=12, **more)
        InProcessTrainer(find_base("mini"), device).train(job, lambda event: None)
        rows = (job.workdir / "loss.csv").read_text().splitlines()[1:]
        return [float(row.split(",")[1]) for row in rows]

    # The CPU draws its noise from another generator than a GPU, so that only means over many samples compare.
    expected = sum(losses("cpu", "fp32", batch_size=32)) / 12
    for precision, allowed in (("fp32", 0.06), ("fp16", 0.08), ("bf16", 0.08)):
        mean = sum(losses(place.device, precision, batch_size=32)) / 12
        found[precision] = {"mean_loss": mean, "cpu": expected}
        if abs(mean - expected) > allowed * expected:
            wrong.append(f"in {precision} the mean loss is {mean:.4f}, on the CPU {expected:.4f}")
    return {**found, "wrong": wrong}


def draw_a_character(place: Place) -> Figures:
    """`create --recipe mini` on the device: seconds a stage, and whether the LoRA draws its character."""
    home = tempfile.mkdtemp(dir=place.work)
    few = [
        "generate.images=6",
        "generate.steps=4",
        "train.steps=12",
        "evaluate.prompts=2",
        "publish.min_change=0",
    ]
    words = ["create", "Elara", "--description", "1girl, brown hair, red dress", "--recipe", "mini"]
    words += [word for setting in few for word in ("--set", setting)] if place.small else []
    done = subprocess.run(
        [sys.executable, "-m", "lora_foundry", *words],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={**os.environ, "LORA_FOUNDRY_HOME": home, "LORA_FOUNDRY_DEVICE": place.device},
    )
    wrong = [] if done.returncode == 0 else [f"create failed: {(done.stderr or done.stdout)[-800:]}"]
    return {"output": done.stdout[-2000:], "wrong": wrong}


def time_steps(place: Place) -> Figures:
    """Seconds a step and samples a second, with and without CUDA graphs, batch 1 and 4, bf16."""
    rows: Figures = {}
    for batch in (1, 4):
        for graphs in (False, True):
            rows[f"batch {batch}{', graphs' if graphs else ''}"] = _timed(place, batch, graphs)
    return {**rows, "wrong": []}


def _timed(place: Place, batch: int, graphs: bool) -> Figures:
    steps = 8 if place.small else 60
    given = {
        "batch_size": batch,
        "cuda_graphs": graphs,
        "steps": steps,
        "checkpoint_every": steps,
        "precision": "bf16",
    }
    job, clock = place.job("timed", place.pictures(), **given), list[tuple[int, float]]()
    InProcessTrainer(place.base(), place.device).train(
        job, lambda event: clock.append((event.done, time.perf_counter())) if event.loss is not None else None
    )
    half = [entry for entry in clock if entry[0] >= steps // 2] or clock
    done, seconds = half[-1][0] - half[0][0], half[-1][1] - half[0][1]
    return {"seconds_a_step": seconds / done if done else None}


def measure_memory(place: Place) -> Figures:
    """Peak memory beside the estimate, and that of the VAE, which may not exceed 4 GiB for a picture of 1024 pixels."""
    found, wrong = Figures(), list[str]()
    for batch, saving in ((1, False), (4, False), (4, True)):
        given = {
            "batch_size": batch,
            "gradient_checkpointing": saving,
            "precision": "bf16",
            "memory": "as_set",
            "steps": 3,
        }
        job, base = place.job("memory", place.pictures(), **given), place.base()
        _reset_peak()
        InProcessTrainer(base, place.device).train(job, lambda event: None)
        estimate = training_memory(base, job.settings) / GIB
        name = f"batch {batch}{', checkpointing' if saving else ''}"
        found[name] = {"peak_gib": _peak(), "estimate_gib": estimate}
        if not place.small and not 0.8 < estimate / _peak() < 1.4:
            wrong.append(f"{name}: {_peak():.2f} GiB were taken where {estimate:.2f} were estimated")
    model = load_family(place.base(), place.settings(), torch.device(place.device))
    _reset_peak()
    side = 128 if place.small else 1024
    model.encode_images(torch.rand(8, 3, side, side) * 2 - 1)
    found["vae"] = {"peak_gib": _peak()}
    if _peak() > 4:
        wrong.append(f"the VAE took {_peak():.1f} GiB for eight pictures, one after another")
    return {**found, "wrong": wrong}


def fit_big_bases(place: Place) -> Figures:
    """Peak memory beside the estimate and seconds a step of a big base in 16 bits, quantised and streamed."""
    folder = Path(tempfile.mkdtemp(dir=place.work))
    return measure_cards(torch.device(place.device), place.small, folder)


def profile_a_step(place: Place) -> Figures:
    """Launches, time on the device and the largest kernels of one step at batch 1."""
    from torch.profiler import ProfilerActivity, profile

    given = {"batch_size": 1, "steps": 4, "precision": "bf16"}
    job, device = place.job("profile", place.pictures(), **given), torch.device(place.device)
    training = prepare(job, place.base(), device, lambda event: None)
    forward_backward = training._forward_backward()
    for batch in (*training.dataset.micro_batches(0), *training.dataset.micro_batches(1)):
        forward_backward(batch)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    with profile(activities=activities) as profiled:
        for batch in training.dataset.micro_batches(2):
            forward_backward(batch)
        if device.type == "cuda":
            torch.cuda.synchronize()
    events = profiled.key_averages()
    on_device = [event for event in events if event.device_type.name == "CUDA"]
    counted = on_device or [event for event in events if event.key.startswith("aten::")]

    def time_of(event: Any) -> float:
        return float(event.self_device_time_total if on_device else event.self_cpu_time_total)

    largest = sorted(counted, key=time_of, reverse=True)[:12]
    return {
        "kernels": sum(event.count for event in counted),
        "milliseconds": sum(map(time_of, counted)) / 1e3,
        "largest": {event.key[:90]: [event.count, time_of(event) / 1e3] for event in largest},
        "wrong": [],
    }


def _reset_peak() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _peak() -> float:
    return torch.cuda.max_memory_allocated() / GIB if torch.cuda.is_available() else 0.0


PIECES: dict[str, Callable[[Place], Figures]] = {
    "tests": run_tests,
    "right": compare_with_cpu,
    "character": draw_a_character,
    "memory": measure_memory,
    "cards": fit_big_bases,
    "speed": time_steps,
    "profile": profile_a_step,
}


def run_piece(name: str, place: Place, result: Path) -> int:
    """Runs one piece in this process and writes its figures."""
    figures = PIECES[name](place)
    result.parent.mkdir(parents=True, exist_ok=True)
    result.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    for sentence in figures["wrong"]:
        print(f"WRONG ({name}): {sentence}", flush=True)
    return int(bool(figures["wrong"]))
