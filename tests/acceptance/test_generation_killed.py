"""SIGKILL at random moments of generate and curate, run again: the same files as a run that nobody disturbed.

On the real bundled model, in real processes. A fork server imports the libraries once, so each try costs a second."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import statistics
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from lora_foundry.domain.curation import CurationResult
from lora_foundry.files.storage import read_model
from tests.painted import tree

pytestmark = pytest.mark.skipif(os.name != "posix", reason="SIGKILL and fork servers are POSIX")
SETTINGS = ("generate.images=8", "generate.steps=2", "generate.batch_size=3", "curate.budget=3")


def work(folder: str, settings: tuple[str, ...], events: Any, kill_after: int | None, delay: float) -> None:
    """Both stages in a process of its own, which SIGKILL ends `delay` seconds after that many events: surely, since a
    process that is done by then waits for its end."""
    from lora_foundry.backends.diffusers import DiffusersGenerator
    from lora_foundry.families._shared.inspect import find_base
    from lora_foundry.stages.curate import step as curate
    from lora_foundry.stages.generate import step as generate
    from tests.painted import PaintedPorts, make_run

    seen = 0

    def progress(event: Any) -> None:
        nonlocal seen
        seen += 1
        events.send(event.stage)
        if seen == kill_after:
            threading.Timer(delay, os.kill, (os.getpid(), signal.SIGKILL)).start()

    run = make_run(Path(folder), *settings, description="1girl, red hair, green dress")
    ports = PaintedPorts(DiffusersGenerator(find_base("mini"), run.recipe.generate, "cpu"))
    generate.run(run, ports, progress)
    curate.run(run, ports, progress)
    if kill_after is not None:
        time.sleep(60)


def attempt(
    processes: Any, folder: Path, settings: tuple[str, ...], kill_after: int | None, delay: float = 0
) -> int:
    """Runs both stages, killed `delay` seconds after that many events; returns how many events came."""
    receiver, sender = processes.Pipe(duplex=False)
    child = processes.Process(target=work, args=(str(folder), settings, sender, kill_after, delay))
    child.start()
    sender.close()
    seen = 0
    with contextlib.suppress(EOFError):
        while True:
            receiver.recv()
            seen += 1
    child.join()
    receiver.close()
    assert child.exitcode == (0 if kill_after is None else -signal.SIGKILL)
    return seen


@pytest.fixture(scope="module")
def whole(
    processes: Any, tmp_path_factory: pytest.TempPathFactory
) -> tuple[tuple[str, ...], dict[str, bytes], int]:
    """The settings, the files and the number of events of an undisturbed run in which curation has work to do."""
    first = tmp_path_factory.mktemp("first")
    attempt(processes, first, SETTINGS, None)
    easy = read_model(first / "curation.json", CurationResult)
    assert easy is not None
    middle = statistics.median(verdict.measures.sharpness or 0 for verdict in easy.accepted)
    settings = (*SETTINGS, f"curate.min_sharpness={middle:.3f}")
    folder = tmp_path_factory.mktemp("whole") / "Zoë van Dijk"
    events = attempt(processes, folder, settings, None)
    result = json.loads((folder / "curation.json").read_text())
    assert len(result["rejected"]) >= 4, "the median rejects half"
    return settings, tree(folder), events


@pytest.mark.parametrize("seed", range(2))
def test_killed_at_random_it_ends_in_the_same_files(
    processes: Any, whole: tuple[tuple[str, ...], dict[str, bytes], int], tmp_path: Path, seed: int
) -> None:
    settings, files, events = whole
    rng = random.Random(seed)
    folder = tmp_path / "Zoë van Dijk"
    attempt(processes, folder, settings, rng.randrange(1, events - 3), rng.random() * 0.01)
    assert not (folder / "curation.json").exists(), "there was nothing left to go on with"
    for _ in range(2):
        attempt(processes, folder, settings, rng.randrange(1, 3), rng.random() * 0.2)
    attempt(processes, folder, settings, None)
    assert tree(folder) == files
