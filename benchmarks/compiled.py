"""What `train.compile_blocks` brings and costs: seconds a step of a LoRA on FLUX.2 Klein's transformer with random weights,
fused as it is without, and with compiled blocks; how long the first step takes, and peak memory on a GPU. Seconds are the
processor's on a CPU, its compiler's too, and the clock's on a GPU. What torch has compiled stays in its cache: a second run
shows what a second training waits for.

    python -m benchmarks.compiled                          a small one of eight blocks, on the CPU
    python -m benchmarks.compiled --device cuda --full     Klein's own size, at 1024 pixels
"""

from __future__ import annotations

import argparse
import copy
import os
import statistics
import time
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from benchmarks.common import finish, table
from benchmarks.gpu.cards import GIB, full_size, random_network, wait
from lora_foundry.domain.sections import TrainSection
from lora_foundry.families._shared.base import Base
from lora_foundry.families._shared.family import Batch, load_family
from lora_foundry.families._shared.parts import Parts
from lora_foundry.trainer.compiled import Compiled
from lora_foundry.trainer.fused import fuse
from lora_foundry.trainer.lora import NAME, Adapter
from lora_foundry.trainer.step import ForwardBackward

# Klein's blocks, fewer and narrower, for a CPU.
SMALL = {"num_layers": 2, "num_single_layers": 6, "num_attention_heads": 4, "joint_attention_dim": 768}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--full", action="store_true", help="Klein's own size")
    parser.add_argument("--res", type=int, default=0, help="pixels a side; 0: 256, and 1024 with --full")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="")
    parser.add_argument("--checkpointing", action="store_true", help="gradient checkpointing")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--no-save", action="store_true", help="leave benchmarks/results as it is")
    options = parser.parse_args()
    options.res = options.res or (1024 if options.full else 256)
    options.precision = options.precision or ("bf16" if options.full else "fp32")
    device, base = torch.device(options.device), full_size()
    network = random_network(base, device, {} if options.full else SMALL)
    rows, gradients = {}, []
    for way in ("fused", "compiled"):
        rows[way], gradient = measure(options, base, network, device, way == "compiled")
        gradients.append(gradient)
    alike = float(nn.functional.cosine_similarity(*gradients, dim=0))
    table(
        ["", "first step, s", "s/step", "peak GPU, GiB"],
        [[way, row["first"], row["step"], row["peak"]] for way, row in rows.items()],
    )
    figures = {
        **rows,
        "step_ratio": rows["compiled"]["step"] / rows["fused"]["step"],
        "gradient_alike": alike,
    }
    finish("compiled", figures, {"options": vars(options)}, not options.no_save)


def measure(
    options: argparse.Namespace, base: Base, network: nn.Module, device: torch.device, compiling: bool
) -> tuple[dict[str, float], Tensor]:
    """Seconds of the first step, with what is compiled in it, and of a step after, and the first one's gradients."""
    settings = TrainSection.model_validate(
        {"precision": options.precision, "rank": 32, "alpha": 32.0, "min_snr_gamma": 0.0, "memory": "as_set",
         "resolution": options.res, "gradient_checkpointing": options.checkpointing}
    )  # fmt: skip
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    torch.manual_seed(0)
    with patch.object(Parts, "load_denoiser", lambda self: copy.deepcopy(network)):
        model = load_family(base, settings, device)
        adapter = Adapter(model.networks, model.lora_targets(settings), settings, 0)
    with torch.no_grad():
        adapter.buffers["unet"].add_(torch.randn_like(adapter.buffers["unet"]), alpha=0.01)
    step: Any = ForwardBackward(model, torch.amp.GradScaler(device.type, enabled=False), 1)
    if compiling:
        step = Compiled(step, model.network, adapter.gradients(), lambda: None)
    else:
        fuse(model.network, NAME, adapter.keep_half_copies(model.dtype))
    config: Any = model.network.config
    latents = torch.randn(1, config.in_channels, options.res // 16, options.res // 16, device=device)
    condition = {"text": torch.randn(1, 512, config.joint_attention_dim, device=device)}
    batch = Batch(latents, condition, torch.randn_like(latents), torch.tensor([0.5]))
    seconds: list[float] = []
    gradient = torch.zeros(0)
    for number in range(2 + options.steps):
        started = clock(device)
        step(batch)
        adapter.gradients_added()
        wait(device)
        seconds.append(clock(device) - started)
        if number == 0:
            gradient = adapter.gradients()[0].double().cpu()
        adapter.zero_gradients()
    peak = torch.cuda.max_memory_allocated() / GIB if device.type == "cuda" else 0.0
    return {"first": seconds[0], "step": statistics.median(seconds[2:]), "peak": peak}, gradient


def clock(device: torch.device) -> float:
    """Seconds as they count on `device`."""
    return sum(os.times()[:4]) if device.type == "cpu" else time.perf_counter()


if __name__ == "__main__":
    main()
