"""SIGKILL at random moments of generate and curate, run again: the same files as a run that nobody disturbed.

On the real bundled model, in real processes. A fork server imports the libraries once, so each try costs a second."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import statistics
from pathlib import Path
from typing import Any

import pytest

from lora_foundry.domain.curation import CurationResult
from lora_foundry.files.storage import read_model
from tests.painted import tree

pytestmark = pytest.mark.skipif(os.name != "posix", reason="SIGKILL and fork servers are POSIX")
SETTINGS = ("generate.images=8", "generate.steps=2", "generate.batch_size=3", "curate.budget=3")


def work(folder: str, settings: tuple[str, ...], events: Any) -> None:
    """Both stages in a process of its own; says how far it is."""
    from lora_foundry.backends.diffusers import DiffusersGenerator
    from lora_foundry.families._shared.inspect import find_base
    from lora_foundry.stages.curate import step as curate
    from lora_foundry.stages.generate import step as generate
    from tests.painted import PaintedPorts, make_run

    run = make_run(Path(folder), *settings, description="1girl, red hair, green dress")
    ports = PaintedPorts(DiffusersGenerator(find_base("mini"), run.recipe.generate, "cpu"))
    generate.run(run, ports, lambda event: events.send(event.stage))
    curate.run(run, ports, lambda event: events.send(event.stage))


@pytest.fixture(scope="module")
def server() -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["lora_foundry.backends.diffusers", "lora_foundry.stages.curate.step", "tests.painted"]
    )
    return context


def attempt(
    server: Any, folder: Path, settings: tuple[str, ...], kill_after: int | None, delay: float = 0
) -> int:
    """Runs both stages, killed `delay` seconds after that many events; returns how many events came."""
    receiver, sender = server.Pipe(duplex=False)
    child = server.Process(target=work, args=(str(folder), settings, sender))
    child.start()
    sender.close()
    seen = 0
    while kill_after is None or seen < kill_after:
        try:
            receiver.recv()
        except EOFError:
            break
        seen += 1
    if kill_after is not None:
        child.join(delay)
        if child.is_alive():
            os.kill(child.pid, signal.SIGKILL)
    child.join()
    receiver.close()
    assert child.exitcode in ((0,) if kill_after is None else (0, -signal.SIGKILL))
    return seen


@pytest.fixture(scope="module")
def whole(
    server: Any, tmp_path_factory: pytest.TempPathFactory
) -> tuple[tuple[str, ...], dict[str, bytes], int]:
    """The settings, the files and the number of events of an undisturbed run in which curation has work to do."""
    first = tmp_path_factory.mktemp("first")
    attempt(server, first, SETTINGS, None)
    easy = read_model(first / "curation.json", CurationResult)
    assert easy is not None
    middle = statistics.median(verdict.measures.sharpness or 0 for verdict in easy.accepted)
    settings = (*SETTINGS, f"curate.min_sharpness={middle:.3f}")
    folder = tmp_path_factory.mktemp("whole") / "Zoë van Dijk"
    events = attempt(server, folder, settings, None)
    result = json.loads((folder / "curation.json").read_text())
    assert len(result["rejected"]) >= 4, "the median rejects half"
    return settings, tree(folder), events


@pytest.mark.parametrize("seed", range(2))
def test_killed_at_random_it_ends_in_the_same_files(
    server: Any, whole: tuple[tuple[str, ...], dict[str, bytes], int], tmp_path: Path, seed: int
) -> None:
    settings, files, events = whole
    rng = random.Random(seed)
    folder = tmp_path / "Zoë van Dijk"
    for _ in range(3):
        attempt(server, folder, settings, rng.randrange(1, events), rng.random() * 0.2)
    attempt(server, folder, settings, None)
    assert tree(folder) == files
