"""SIGKILL at random moments, by a real process that really dies, changes nothing about the result."""

from __future__ import annotations

import os
import pickle
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from lora_foundry.families._shared.base import Base
from lora_foundry.ports import TrainingJob
from lora_foundry.trainer.trainer import InProcessTrainer

CHILD = """
import pickle, sys
from pathlib import Path
from lora_foundry.families._shared.inspect import find_base
from lora_foundry.trainer.trainer import InProcessTrainer
job = pickle.loads(Path(sys.argv[1]).read_bytes())
result = InProcessTrainer(find_base("mini"), "cpu").train(job, lambda event: print(event.done, flush=True))
print("finished from", result.resumed_from, flush=True)
"""
STEPS, EVERY = 30, 3


def test_killed_at_random_moments_the_weights_are_the_same(
    base: Base, make_job: Callable[..., TrainingJob], tmp_path: Path
) -> None:
    settings = {"steps": STEPS, "checkpoint_every": EVERY, "shuffle_tags": True, "caption_dropout": 0.2}
    undisturbed = make_job(tmp_path / "undisturbed", **settings)
    started = time.monotonic()
    InProcessTrainer(base, "cpu").train(undisturbed, lambda event: None)
    seconds = time.monotonic() - started

    job = make_job(tmp_path / "killed", **settings)
    job_file = tmp_path / "job.pickle"
    job_file.write_bytes(pickle.dumps(job))
    rng = random.Random()
    seed = rng.randrange(10**6)
    rng.seed(seed)
    for _ in range(2):
        child = start(job_file)
        assert child.stdout is not None
        child.stdout.readline()
        time.sleep(rng.uniform(0, 0.7 * seconds))
        child.send_signal(signal.SIGKILL)
        child.communicate()
    last = start(job_file)
    output, errors = last.communicate(timeout=200)
    assert last.returncode == 0, errors
    assert job.output.read_bytes() == undisturbed.output.read_bytes(), f"seed {seed}: {output}"
    assert (job.workdir / "loss.csv").read_bytes() == (undisturbed.workdir / "loss.csv").read_bytes()
    assert len(list((job.workdir / "checkpoints").iterdir())) == 4


def start(job_file: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, str(job_file)],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
