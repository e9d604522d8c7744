"""SIGKILL at random moments, by a real process that really dies, changes nothing about the result."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lora_foundry.domain.run import ProgressEvent
from lora_foundry.families._shared.base import Base
from lora_foundry.ports import TrainingJob
from lora_foundry.trainer.trainer import InProcessTrainer

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.name != "posix", reason="SIGKILL and fork servers are POSIX"),
]
STEPS, EVERY = 18, 2


def train_until_killed(base: Base, job: TrainingJob, step: int, delay: float) -> None:
    """Trains in a process of its own and dies `delay` seconds after the first news from that step on."""
    timer = threading.Timer(delay, os.kill, (os.getpid(), signal.SIGKILL))

    def progress(event: ProgressEvent) -> None:
        if event.done >= step and timer.ident is None:
            timer.start()

    InProcessTrainer(base, "cpu").train(job, progress)
    time.sleep(60)  # a machine so fast that the training is over gets its kill here


def test_killed_at_random_moments_the_weights_are_the_same(
    base: Base, make_job: Callable[..., TrainingJob], tmp_path: Path, processes: Any
) -> None:
    settings = {"steps": STEPS, "checkpoint_every": EVERY, "shuffle_tags": True, "caption_dropout": 0.2}
    undisturbed = make_job(tmp_path / "undisturbed", **settings)
    InProcessTrainer(base, "cpu").train(undisturbed, lambda event: None)

    job = make_job(tmp_path / "killed", **settings)
    seed = random.randrange(10**6)
    rng = random.Random(seed)
    for step in (rng.randrange(1, STEPS // 2), rng.randrange(STEPS // 2, STEPS)):
        child = processes.Process(target=train_until_killed, args=(base, job, step, rng.uniform(0, 0.05)))
        child.start()
        child.join()
        assert child.exitcode == -signal.SIGKILL, f"seed {seed}: it was not killed"
    result = InProcessTrainer(base, "cpu").train(job, lambda event: None)
    assert result.resumed_from >= STEPS // 2 - EVERY, f"seed {seed}: it began anew"
    assert job.output.read_bytes() == undisturbed.output.read_bytes(), f"seed {seed}"
    assert (job.workdir / "loss.csv").read_bytes() == (undisturbed.workdir / "loss.csv").read_bytes()
    assert len(list((job.workdir / "checkpoints").iterdir())) == 4
