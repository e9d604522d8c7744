"""What gradient checkpointing costs beside a batch in parts, which both save memory: the sums of a step for four pictures at
full size, counted on torch's meta device, the kernels that it launches, and the memory by the estimate; then the
miniature model's steps in processor seconds, the ways in turn. No GPU is needed, and none is measured.

    python -m benchmarks.checkpointing [--rounds 3]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.common import finish, table
from benchmarks.launches import META, count_step, targets, unet
from lora_foundry.domain.run import ProgressEvent
from lora_foundry.domain.sections import TrainSection
from lora_foundry.families._shared.inspect import find_base
from lora_foundry.families._shared.memory import training_memory
from lora_foundry.families._shared.targets import DENOISER
from lora_foundry.ports import TrainingImage, TrainingJob
from lora_foundry.recipe_files import load_recipe
from lora_foundry.trainer.fused import fuse
from lora_foundry.trainer.lora import NAME, Adapter
from lora_foundry.trainer.trainer import InProcessTrainer
from tests.unit.families.meter import full_size

PICTURES = 4
WAYS = {
    "4 at once": (4, False),
    "4 at once, checkpointing": (4, True),
    "2 and 2": (2, False),
    "one by one": (1, False),
}
BASES = {"sd15": ("sd", "sd", 768), "sdxl": ("sdxl", "sdxl", 1024)}
STEPS = 12


def network_of(recipe: str, batch: int, checkpointing: bool) -> tuple[Any, dict[str, Any]]:
    """The recipe's network in training, and what it is called with."""
    network: Any
    network, given = unet(*BASES[recipe], batch)
    network.train()
    if checkpointing:
        network.enable_gradient_checkpointing()
    return network, given


def sums(network: Any, given: dict[str, Any], settings: TrainSection) -> int:
    """FLOP of forward and backward pass of one batch."""
    with META:
        adapter = Adapter({DENOISER: network}, targets(network, settings), settings, 0)
    fuse(network, NAME, adapter.keep_half_copies(torch.bfloat16))
    with FlopCounterMode(display=False) as counter:
        network(**given)[0].float().square().mean().backward()
    return counter.get_total_flops()


def counted(recipe: str) -> Iterator[dict[str, Any]]:
    family, configuration, size = BASES[recipe]
    asked = load_recipe(recipe).train.model_copy(
        update={"resolution": size, "memory": "as_set", "cache_captions": True}
    )
    base = full_size(family, configuration)
    for way, (batch, checkpointing) in WAYS.items():
        settings = asked.model_copy(update={"batch_size": batch, "gradient_checkpointing": checkpointing})
        times = PICTURES // batch
        yield {
            "base": f"{recipe} {size}",
            "way": way,
            "tflop": round(sums(*network_of(recipe, batch, checkpointing), settings) * times / 1e12, 1),
            "launches": count_step(*network_of(recipe, batch, checkpointing)).count * times,
            "gib": round(training_memory(base, settings) / (1 << 30), 1),
        }


def timed(rounds: int) -> dict[str, float]:
    """Processor seconds a step of the miniature model, the median of the rounds."""
    spent: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(rounds):
        for way, (batch, checkpointing) in WAYS.items():
            spent[way].append(seconds_a_step(batch, checkpointing))
    return {way: round(median(seconds), 3) for way, seconds in spent.items()}


def seconds_a_step(batch: int, checkpointing: bool) -> float:
    settings = load_recipe("mini").train.model_copy(
        update={"batch_size": batch, "accumulation": PICTURES // batch, "gradient_checkpointing": checkpointing,
                "steps": STEPS, "saves": 0, "regularisation": 0, "sample_prompts": ()}
    )  # fmt: skip
    picture = Path(__file__).parents[1] / "docs" / "before_after.png"
    images = [TrainingImage(picture, f"elara, picture {number}") for number in range(PICTURES)]
    clock: list[tuple[int, float]] = []

    def look(event: ProgressEvent) -> None:
        if event.loss is not None:
            clock.append((event.done, time.process_time()))

    with tempfile.TemporaryDirectory() as folder:
        job = TrainingJob(images, settings, "elara", Path(folder) / "lora.safetensors", Path(folder), {})
        InProcessTrainer(find_base("mini"), "cpu").train(job, look)
    (first, begun), (last, ended) = clock[0], clock[-1]
    return (ended - begun) / (last - first)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--save", action="store_true", help="store the figures in benchmarks/results/checkpointing.json"
    )
    options = parser.parse_args()
    rows = [row for recipe in BASES for row in counted(recipe)]
    table(tuple(rows[0]), [tuple(row.values()) for row in rows])
    seconds = timed(options.rounds)
    table(("miniature model", "CPU s a step"), list(seconds.items()))
    finish("checkpointing", {"seconds": seconds}, {"rows": rows}, options.save)


if __name__ == "__main__":
    main()
