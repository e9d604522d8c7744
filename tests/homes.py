"""One undisturbed run of the small pipeline for the whole session, with a copy of its home before every stage: a test of
one stage starts from that copy instead of running all that comes before it. xdist's workers share them."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from lora_foundry import Character, Foundry
from lora_foundry.domain.run import ProgressEvent
from lora_foundry.pipeline import PIPELINE
from tests.painted import quiet, tree

# The whole pipeline on the real model in a few seconds: what is small here is small in number, never in kind.
SMALL = ("generate.images=6", "generate.steps=4", "generate.batch_size=3", "generate.rounds=1", "train.steps=12",
         "train.batch_size=2", "train.regularisation=0", "train.rank=4", "train.checkpoint_every=4", "train.saves=2",
         "train.sample_steps=1",
         "evaluate.prompts=2", "evaluate.seeds=1", "evaluate.choice_prompts=2", "publish.min_change=0",
         "curate.budget=1")  # fmt: skip
ELARA = Character(name="Elara", description="1girl, brown hair, long hair, blue eyes, red dress, crown")
STAGES = tuple(stage.name for stage in PIPELINE)
# What says where and when, and so differs between two runs of the same.
TELLS_TIME_OR_PLACE = {"log.txt", "run.json", "report.html", ".lock"}


class StageOver(Exception):
    """Ends a run where a test wants to look at it."""


class Homes:
    """Copies of a home, by the stage that comes next; `seen` and `writes` say what the run told and did."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        notes = json.loads((folder / "notes.json").read_text())
        self.seen: list[str] = notes["seen"]  # stages, in the order in which their progress came
        self.writes: dict[str, int] = notes["writes"]  # stage -> files written, in an undisturbed run

    def copy(self, target: Path, before: str | None = None) -> Path:
        """The home as it stood before a stage, or finished, at `target`."""
        return shutil.copytree(self.folder / (before or "finished"), target)

    def after(self, stage: str) -> Path:
        """The home as it stood when the stage was over; not to be written to."""
        following = (*STAGES[1:], "finished")
        return self.folder / following[STAGES.index(stage)]


def make_homes(folder: Path) -> Homes:
    """Runs the pipeline once; `folder` must not exist and is complete as soon as it does."""
    making = folder.with_name(f"{folder.name} in the making")
    home = making / "home"
    seen: list[str] = []
    written = 0
    writes: dict[str, int] = {}
    (making / STAGES[0]).mkdir(parents=True)

    def fsync(descriptor: int) -> None:
        nonlocal written
        written += 1
        real(descriptor)

    def finished(stage: Any, *_: Any) -> None:
        nonlocal written
        writes[stage.name], written = written, 0
        position = STAGES.index(stage.name) + 1
        shutil.copytree(home, making / (*STAGES, "finished")[position])

    real, os.fsync = os.fsync, fsync
    try:
        Foundry(home).create(ELARA, "mini", settings=SMALL, finished=finished,
                             progress=lambda event: seen.append(event.stage))  # fmt: skip
    finally:
        os.fsync = real
    (making / "notes.json").write_text(json.dumps({"seen": list(dict.fromkeys(seen)), "writes": writes}))
    making.rename(folder)
    return Homes(folder)


def run_until(
    home: Path,
    stage: str,
    settings: Iterable[str] = SMALL,
    progress: Callable[[ProgressEvent], None] = quiet,
    strike: Callable[[], None] | None = None,
    at_write: int = 0,
) -> None:
    """`create` for Elara that ends when `stage` is over.

    strike: is called where a file of that stage is flushed to the disk, before it gets its name; at_write: from which
    file on, counted from 0.
    """
    position = STAGES.index(stage)
    written = 0
    begun = position == 0
    real = os.fsync

    def finished(done: Any, *_: Any) -> None:
        nonlocal begun
        begun = begun or done.name == STAGES[position - 1]
        if done.name == stage:
            raise StageOver

    def fsync(descriptor: int) -> None:
        nonlocal written
        if begun and strike is not None:
            written += 1
            if written > at_write:
                strike()
        real(descriptor)

    os.fsync = fsync
    try:
        Foundry(home).create(ELARA, "mini", settings=settings, progress=progress, finished=finished)
    except StageOver:
        return
    finally:
        os.fsync = real
    raise AssertionError(f"the stage {stage} was never over")


def killed_at_write(processes: Any, home: Path, stage: str, at_write: int) -> None:
    """The same in a process of its own that SIGKILL ends at that write. processes: a context of multiprocessing."""
    child = processes.Process(target=_die_at_write, args=(str(home), stage, at_write))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL, f"{stage} was over before it was killed"


def _die_at_write(home: str, stage: str, at_write: int) -> None:
    run_until(Path(home), stage, strike=lambda: os.kill(os.getpid(), signal.SIGKILL), at_write=at_write)


def lasting(home: Path) -> dict[str, bytes]:
    """Every file of a home that must not depend on when, where and in how many attempts it was made."""
    return {
        name: _without_place(name, data) if name.endswith(".json") else data
        for name, data in tree(home).items()
        if name.rpartition("/")[2] not in TELLS_TIME_OR_PLACE
    }


def _without_place(name: str, data: bytes) -> bytes:
    """JSON without the folder of the home, file times, and the step that a training was taken up from."""
    varying = ["modified", "resumed_from"]
    if name.endswith("publication.json"):
        varying.append("fingerprint")  # of the folder that the LoRA is installed in, too
    dropped = re.compile(rf'^\s*"({"|".join(varying)})":'.encode())
    lines = [line for line in data.splitlines() if not dropped.match(line)]
    return re.sub(rb'"/[^"]*?/(datasets|loras)/', rb'"\1/', b"\n".join(lines))
