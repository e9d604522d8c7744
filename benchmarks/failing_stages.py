"""What a person sees when a stage fails in front of them: `lora-foundry create` on a fresh home, one fault in the third step of
its training, and the seconds from the fault to the prompt, the exit code and the sentence. A fault that is tried again is
counted from the last time it happened; the retries before it wait 5 s and more on purpose."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from common import RESULTS, finish, table
from failing_trainer import BASE, FAULT, FAULTS, MOMENTS

from lora_foundry.mini import MODEL_DIR
from lora_foundry.tasks.children import SILENCE

LIMIT = 5.0
CLOSES, HANGS = "folder read-only", "child frozen (kill -STOP)"
NEEDS_ROOT = {"disk full", "disk full, task database on it"}  # a small file system of its own
DISK_MIB = 96
SETTINGS = ("train.backend=failing", "generate.rounds=1", "generate.complete_description=false",
            "generate.images=6", "generate.steps=4", "train.steps=12", "train.batch_size=2",
            "train.rank=4", "train.checkpoint_every=4", "train.saves=2")  # fmt: skip
ENTRY_POINT = "[lora_foundry.trainer]\nfailing = failing_trainer:FailingTrainer\n"


@dataclass(frozen=True)
class Seen:
    """What one fault came to. times: how often it happened; seconds: from the last time to the prompt; load: of the machine
    then, as the processes that wanted a core for each core there is."""

    fault: str
    times: int
    seconds: float
    exit_code: int
    load: float
    sentence: str


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    known = f"some of: {', '.join(FAULTS)}; the stored rows of the others stay. All unless given"
    parser.add_argument("faults", nargs="*", default=[], choices=[[], *FAULTS], help=known, metavar="FAULT")
    parser.add_argument("--no-save", action="store_true", help="leave benchmarks/results as it is")
    options = parser.parse_args()
    rows = list[Seen]()
    for fault in options.faults or FAULTS:
        if fault in NEEDS_ROOT and os.geteuid():
            print(f"{fault}: left out, it takes root to mount a small file system", flush=True)
            continue
        with tempfile.TemporaryDirectory() as folder:
            rows.append(suffer(fault, Path(folder)))
        print(rows[-1], flush=True)
    if options.faults:
        rows += [row for row in stored() if row.fault not in options.faults]
    rows.sort(key=lambda row: list(FAULTS).index(row.fault))
    table(
        ["fault", "times", "s to the prompt", "exit code", "load", "sentence"],
        [list(asdict(row).values()) for row in rows],
    )
    quick = [row for row in rows if row.fault != HANGS]
    figures = {
        "faults": len(rows),
        "slowest_s": max((row.seconds for row in quick), default=0.0),
        "over_the_limit": [row.fault for row in quick if row.seconds > LIMIT],
        "without_a_sentence": [row.fault for row in rows if not row.sentence],
    }
    details = {"limit_s": LIMIT, "limit_of_a_frozen_child_s": SILENCE, "rows": [asdict(row) for row in rows]}
    finish("failing_stages", figures, details, not options.no_save)


def stored() -> list[Seen]:
    """The rows of an earlier run, to which those of single faults are added."""
    file = RESULTS / "failing_stages.json"
    return [Seen(**row) for row in json.loads(file.read_text())["rows"]] if file.is_file() else []


def suffer(fault: str, folder: Path) -> Seen:
    """One `create` that meets the fault, in a folder that is gone afterwards."""
    moments, base, home = folder / "moments", folder / "base", folder / "home"
    shutil.copytree(MODEL_DIR, base)
    home.mkdir()
    settings = (*SETTINGS, f"model.base={base}")
    command = [sys.executable, "-m", "lora_foundry", "create", "Elara", "-d", "1girl, brown hair, red dress"]
    command += ["-r", "mini", "--home", str(home), *(word for each in settings for word in ("--set", each))]
    environment = {**os.environ, FAULT: fault, MOMENTS: str(moments), BASE: str(base)}
    environment["PYTHONPATH"] = os.pathsep.join([str(plug_in(folder)), os.environ.get("PYTHONPATH", "")])
    if fault == "disk full":
        environment["LORA_FOUNDRY_DATABASE_URL"] = f"sqlite:///{folder / 'tasks.db'}"
    with small_disk(home, fault), reopened(home, fault):
        here = Path(sys.prefix).parent  # paths in sentences are told from here
        streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True}
        done = subprocess.run(command, check=False, env=environment, cwd=here, **streams)
        ended = time.monotonic()
    happened = [float(line) for line in moments.read_text().split()] if moments.exists() else []
    said = done.stderr.strip().splitlines()
    last = said[-1] if said else ""
    seconds = round(ended - happened[-1], 2) if happened else float("nan")
    sentence = last.removeprefix("Error: ").replace(str(folder), "") if last.startswith("Error: ") else ""
    if not sentence:
        print(done.stdout, done.stderr, file=sys.stderr)
    load = round(os.getloadavg()[0] / len(os.sched_getaffinity(0)), 1)
    return Seen(fault, len(happened), seconds, done.returncode, load, sentence)


def plug_in(folder: Path) -> Path:
    """A folder that makes `failing_trainer` an installed package's backend for those who have it on their path."""
    place = folder / "plug-in"
    metadata = place / "failing_trainer-1.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: failing-trainer\nVersion: 1\n")
    (metadata / "entry_points.txt").write_text(ENTRY_POINT)
    shutil.copy(Path(__file__).with_name("failing_trainer.py"), place)
    return place


@contextmanager
def small_disk(home: Path, fault: str) -> Iterator[None]:
    """A file system of its own for the home, where the fault is that it is full."""
    if fault not in NEEDS_ROOT:
        yield
        return
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "tmpfs", str(home)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(home)], check=True)


@contextmanager
def reopened(home: Path, fault: str) -> Iterator[None]:
    """Makes the folder that a fault has closed deletable again."""
    try:
        yield
    finally:
        for folder in home.glob("datasets/*/training") if fault == CLOSES else ():
            folder.chmod(0o755) if os.geteuid() else subprocess.run(["umount", str(folder)], check=True)


if __name__ == "__main__":
    main()
