"""The example for other programs' authors runs as it stands, with no server."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_three_ways_of_the_example_all_complete(home: Path) -> None:
    done = subprocess.run(
        [sys.executable, "examples/echo_brain_tasks.py", "--home", str(home)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines() if line[:1].isdigit()]
    assert [line[1] for line in lines] == ["completed"] * 5, done.stdout
    assert (home / "loras" / "elara_v1.safetensors").is_file()
