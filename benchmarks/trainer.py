"""The in-process trainer beside sd-scripts, or alone: seconds a step, from the start of the process to the first
step, the same with warm caches, peak memory, and the share of what the arithmetic alone needs. Each measurement is a
process of its own; the two sides take turns.

    python benchmarks/trainer.py --against ~/sd-scripts --res 256 --precision fp32 --rounds 2
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from common import finish, table
from PIL import Image
from random_checkpoint import make_sd15

CHILD = "--child"


@dataclass(frozen=True)
class Measured:
    """One process: seconds to the end of its first step, seconds a step after it, peak memory in GB."""

    start: float
    step: float
    memory: float
    gpu_memory: float = 0.0


class Watch:
    """Peak memory of the largest process of a family: resident on the host, and on the GPU where nvidia-smi tells it."""

    def __init__(self, pid: int, gpu: bool) -> None:
        self.peak, self.gpu_peak = 0.0, 0.0
        self._pid, self._gpu, self._end = pid, gpu, threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._end.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._end.wait(0.1):
            try:
                root = psutil.Process(self._pid)
                family = [root, *root.children(recursive=True)]
                self.peak = max(self.peak, max(_resident(each) for each in family) / 1e9)
                if self._gpu:
                    self.gpu_peak = max(self.gpu_peak, _gpu_memory({each.pid for each in family}))
            except psutil.Error:
                continue


def _resident(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.Error:
        return 0


def _gpu_memory(pids: set[int]) -> float:
    asked = ["nvidia-smi", "--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits"]
    said = subprocess.run(asked, capture_output=True, text=True, check=False).stdout
    rows = [line.split(",") for line in said.splitlines() if "," in line]
    return sum(float(used) for pid, used in rows if int(pid) in pids) / 1024


def make_job(options: argparse.Namespace, base: Path, folder: Path, **changes: object) -> dict[str, Any]:
    """The same training for both sides, as plain values: pictures of noise, one caption each."""
    images = []
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    for number in range(options.images):
        path = folder / "pictures" / f"{number:03d}.png"
        if not path.exists():
            pixels = np.random.default_rng(number).integers(
                0, 255, (options.res, options.res, 3), dtype=np.uint8
            )
            Image.fromarray(pixels).save(path)
        images.append([str(path), f"elara, standing, smiling, number {number}", 1])
    settings = {
        "rank": options.rank, "alpha": options.rank / 2, "steps": options.steps, "batch_size": options.batch,
        "learning_rate": 1e-4, "lr_schedule": "constant", "warmup_steps": 0, "resolution": options.res,
        "precision": options.precision, "checkpoint_every": options.steps, "min_snr_gamma": 5.0,
        "cuda_graphs": options.graphs,
        "saves": 0,  # sd-scripts keeps none but with its checkpoints, and this many steps are no training
    }  # fmt: skip
    return {
        "base": str(base), "images": images, "settings": settings | changes, "folder": str(folder / "training"),
        "device": options.device, "against": str(options.against or ""), "python": str(options.against_python or ""),
    }  # fmt: skip


def processor_seconds(pid: int) -> float:
    """User and system time that a process and its children, ended ones too, have taken."""
    total = 0.0
    root = psutil.Process(pid)
    for each in (root, *root.children(recursive=True)):
        try:
            times = each.cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
        except psutil.Error:
            continue
    return total


def measure(side: str, job: dict[str, Any], options: argparse.Namespace) -> Measured:
    """Runs one side as a process and times what it says."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads)}
    command = [sys.executable, __file__, CHILD, side, json.dumps(job)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    watch = Watch(child.pid, options.gpu)

    def now() -> float:
        return processor_seconds(child.pid) if options.clock == "cpu" else time.perf_counter()

    started = 0.0 if options.clock == "cpu" else time.perf_counter()
    assert child.stdout is not None
    times: list[tuple[int, float]] = []
    for line in child.stdout:
        if line.startswith("launched"):
            started = now()  # sd-scripts' own beginning, not that of the process that calls it
        elif line.startswith("step "):
            times.append((int(line.split()[1]), now() - started))
    watch.stop()
    if child.wait() != 0 or len(times) < 2:
        raise SystemExit(f"{side} failed with exit code {child.returncode}")
    (first, at_first), (last, at_last) = times[0], times[-1]
    # The first step warms up; where several steps come at once, the first of them is reckoned back.
    step = (at_last - at_first) / (last - first)
    return Measured(at_first - (first - 1) * step, step, watch.peak, watch.gpu_peak)


def child(side: str, job: dict[str, Any]) -> None:
    """What the measured process does: the trainer, as the product makes it, printing each step that is done."""
    from lora_foundry.domain.run import ProgressEvent
    from lora_foundry.domain.sections import TrainSection
    from lora_foundry.families._shared.inspect import find_base
    from lora_foundry.ports import Trainer, TrainingImage, TrainingJob

    base = find_base(job["base"])
    if side == "theirs":
        from lora_foundry.backends.kohya import trainer as kohya

        kohya._PROGRESS_SECONDS = 0.0
        python = Path(job["python"]) if job["python"] else None
        made: Trainer = kohya.KohyaTrainer(base, Path(job["against"]), python, job["device"])
    else:
        from lora_foundry.trainer.trainer import InProcessTrainer

        made = InProcessTrainer(base, job["device"])
    folder = Path(job["folder"])

    def progress(event: ProgressEvent) -> None:
        if event.loss is not None:
            print("step", event.done, flush=True)
        elif side == "theirs":
            print("launched", flush=True)

    images = tuple(TrainingImage(Path(path), caption, repeats) for path, caption, repeats in job["images"])
    settings = TrainSection.model_validate(job["settings"])
    made.train(TrainingJob(images, settings, "elara", folder / "lora.safetensors", folder, {}), progress)


def floor_seconds(options: argparse.Namespace, base: Path) -> float:
    """What a step's matrix products take at the rate this device shows on a large one: the UNet's forward, and the
    backward pass to its inputs, which is all that a frozen base needs. Memory traffic is not counted."""
    import torch
    from diffusers import UNet2DConditionModel
    from torch.utils.flop_counter import FlopCounterMode

    from lora_foundry.families._shared.registry import family_part

    kind = torch.bfloat16 if options.precision != "fp32" and options.gpu else torch.float32
    device = torch.device("cuda" if options.gpu else "cpu")
    torch.set_num_threads(options.threads)
    family = {"sd15": "sd", "sdxl": "sdxl"}[options.model]
    with torch.device("meta"):
        unet: Any = UNet2DConditionModel.from_config(
            UNet2DConditionModel.load_config(
                str(family_part(family, "load").LOADER.configurations / family / "unet")
            )
        ).requires_grad_(False)
        latents = torch.randn(options.batch, 4, options.res // 8, options.res // 8, requires_grad=True)
        text = torch.randn(options.batch, 77, unet.config.cross_attention_dim)
        added = {"text_embeds": torch.randn(options.batch, 1280), "time_ids": torch.randn(options.batch, 6)}
        with FlopCounterMode(display=False) as counter:
            unet(latents, torch.zeros(options.batch), text, added_cond_kwargs=added).sample.sum().backward()
    side = 8192 if options.gpu else 1536
    left, right = (torch.randn(side, side, device=device, dtype=kind) for _ in range(2))
    best = float("inf")
    for _ in range(8):
        if options.gpu:
            torch.cuda.synchronize()
        started = time.perf_counter()
        left @ right
        if options.gpu:
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - started)
    return counter.get_total_flops() / (2 * side**3 / best)


def middle(rows: list[Measured], name: str) -> float:
    return round(statistics.median(getattr(row, name) for row in rows), 3)


def main() -> None:
    if sys.argv[1:2] == [CHILD]:
        child(sys.argv[2], json.loads(sys.argv[3]))
        return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--against", type=Path, help="a checkout of sd-scripts; without it only ours is measured"
    )
    parser.add_argument("--against-python", type=Path, help="the Python that has its requirements")
    parser.add_argument("--model", choices=["sd15", "sdxl"], default="sd15")
    parser.add_argument("--base", type=Path, help="a checkpoint; random weights are made where there is none")
    parser.add_argument("--res", type=int, default=512)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--precision", choices=["fp32", "bf16", "fp16"], default="bf16")
    parser.add_argument("--graphs", action="store_true", help="record our steps as CUDA graphs")
    parser.add_argument("--steps", type=int, default=0, help="0: 6 on a CPU, 200 on a GPU")
    parser.add_argument("--images", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument(
        "--clock",
        choices=["wall", "cpu"],
        default="wall",
        help="cpu: the processor's time, for a machine that is shared",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "lora-foundry-bench")
    parser.add_argument("--name", default="", help="benchmarks/results/trainer-NAME.json")
    parser.add_argument("--no-save", action="store_true", help="leave benchmarks/results as it is")
    options = parser.parse_args()
    import torch

    options.gpu = options.device != "cpu" and torch.cuda.is_available()
    options.device = options.device if options.gpu else "cpu"
    options.steps = options.steps or (200 if options.gpu else 6)
    options.work.mkdir(parents=True, exist_ok=True)
    if options.base is None and options.model != "sd15":
        parser.error("random weights are made for sd15 only; give --base for sdxl")
    base = options.base or make_sd15(options.work / "sd15_random.safetensors")
    runs = take_turns(options, base)
    report(options, runs, floor_seconds(options, base))


def take_turns(options: argparse.Namespace, base: Path) -> dict[str, list[Measured]]:
    """Rounds of ours, ours again with warm caches, and theirs."""
    runs: dict[str, list[Measured]] = {"ours": [], "again": [], "theirs": []}
    for number in range(options.rounds):
        folder = options.work / f"round-{options.precision}"
        shutil.rmtree(folder, ignore_errors=True)
        for side in ("ours", *(("theirs",) if options.against else ()), "again"):
            job = make_job(options, base, folder if side != "theirs" else folder / "theirs", seed=len(side))
            runs[side].append(measure("theirs" if side == "theirs" else "ours", job, options))
            print(f"round {number + 1}: {side}: {runs[side][-1]}", file=sys.stderr, flush=True)
        shutil.rmtree(folder, ignore_errors=True)
    return runs


def report(options: argparse.Namespace, runs: dict[str, list[Measured]], floor: float) -> None:
    sides = {
        side: {name: middle(rows, name) for name in ("start", "step", "memory", "gpu_memory")}
        for side, rows in runs.items()
        if rows
    }
    table(
        ["", "start to first step, s", "s/step", "samples/s", "peak RSS, GB", "peak GPU, GB"],
        [
            [side, row["start"], row["step"], options.batch / row["step"], row["memory"], row["gpu_memory"]]
            for side, row in sides.items()
        ],
    )
    figures: dict[str, object] = {"floor_share": round(floor / sides["ours"]["step"], 3)}
    if "theirs" in sides:
        memory = "gpu_memory" if options.gpu else "memory"
        figures = {
            "step_ratio": round(sides["ours"]["step"] / sides["theirs"]["step"], 3),
            "start_ratio": round(sides["ours"]["start"] / sides["theirs"]["start"], 3),
            "memory_ratio": round(sides["ours"][memory] / sides["theirs"][memory], 3),
        } | figures
    second = round(sides["again"]["start"] / sides["ours"]["start"], 3)
    figures |= {"second_start_ratio": second, "ours": sides["ours"], "theirs": sides.get("theirs")}
    chosen = (
        "model",
        "res",
        "batch",
        "rank",
        "precision",
        "graphs",
        "steps",
        "images",
        "rounds",
        "threads",
        "clock",
        "device",
    )
    details = {
        "options": {name: getattr(options, name) for name in chosen},
        "floor_seconds": round(floor, 4),
        "rounds": {side: [asdict(row) for row in rows] for side, rows in runs.items()},
    }
    name = options.name or f"{options.model}-{options.res}-{options.precision}-batch{options.batch}"
    finish(f"trainer-{name}", figures, details, not options.no_save)


if __name__ == "__main__":
    main()
