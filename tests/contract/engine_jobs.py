"""What the children of the worker tests do: the words of a character's description are their orders. As a program,
`engine_jobs.py URL HOME`, it is a worker of such children."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lora_foundry.errors import FolderBusyError, PermanentError


class GivenUp(PermanentError):
    """An error that trying again does not fix."""


def run(work: dict[str, Any], tell: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Obeys, and leaves the times at which it ran in its dataset folder."""
    folder = Path(work["run"]["dataset_dir"])
    folder.mkdir(parents=True, exist_ok=True)
    order, _, value = work["run"]["character"]["description"].partition(" ")
    attempts = folder / "attempts"
    with attempts.open("a") as file:
        file.write(f"{os.getpid()}\n")
    number = len(attempts.read_text().split())
    if order == "sleep":
        time.sleep(float(value))
    elif order == "device":
        (folder / "device").write_text(os.environ.get("CUDA_VISIBLE_DEVICES", "none"))
        time.sleep(float(value))
    elif order == "grandchild":
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        (folder / "grandchild").write_text(str(child.pid))
        time.sleep(600)
    elif order == "flaky" and number < int(value):
        raise RuntimeError(f"attempt {number} failed")
    elif order == "busy" and number < int(value):
        raise FolderBusyError("Another run is at work in the folder.")
    elif order == "permanent":
        raise GivenUp("The model is gone.")
    elif order == "crash" and number < int(value):
        os.write(2, b"last words\n")
        os.kill(os.getpid(), 9)
    elif order == "log":
        logging.getLogger("lora_foundry").info("from the child")
    elif order == "pictures":
        for number in range(1, int(value) + 1):
            event = {"stage": "generate", "done": number, "total": int(value), "unit": "image"}
            tell({"progress": event | {"image": f"picture_{number}.png"}})
        tell({"progress": event | {"image": None, "message": "looking"}})
    elif order == "stuck":
        for done in (0, int(value)):
            tell({"progress": {"stage": "train", "done": done, "total": 100}})
        os.kill(os.getpid(), 9)
    elif order == "steps":
        _steps(folder, int(value), tell)
    elif order == "locked":
        from lora_foundry import stage_job  # here, since it costs more than all that the other orders do

        stage_job.LOCK_PATIENCE = 0.5
        with stage_job._wait_for(folder / ".lock"):
            _steps(folder, int(value), tell)
    return {"pid": os.getpid(), "attempts": number}


def _steps(folder: Path, total: int, tell: Callable[[dict[str, Any]], None]) -> None:
    """Slow work that goes on where it stood."""
    state = folder / "steps.json"
    done = json.loads(state.read_text()) if state.exists() else 0
    while done < total:
        event = {"stage": "train", "done": done, "total": total, "unit": "step", "loss": 0.5}
        tell({"progress": event})
        time.sleep(0.1)
        done += 1
        aside = state.with_suffix(".part")  # it may be killed at any moment
        aside.write_text(json.dumps(done))
        aside.replace(state)
    tell({"progress": {"stage": "train", "done": done, "total": total, "unit": "step"}})


if __name__ == "__main__":
    from lora_foundry.settings import Settings
    from lora_foundry.tasks.service import serve
    from lora_foundry.tasks.worker import WorkerOptions
    from tests.contract.test_worker import JOBS, QUICK

    serve(sys.argv[1], Settings(home=Path(sys.argv[2])), WorkerOptions(JOBS, {"gpu": 1}, QUICK))
