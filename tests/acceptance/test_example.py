"""The example for other programs' authors runs as it stands, with no server."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.commands import Commands

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_three_ways_of_the_example_all_complete(commands: Commands, home: Path) -> None:
    example = str(ROOT / "examples" / "echo_brain_tasks.py")
    done = commands.run(example, "--home", str(home), environment={"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines() if line[:1].isdigit()]
    assert [line[1] for line in lines] == ["completed"] * 5, done.stdout
    assert (home / "loras" / "elara_v1.safetensors").is_file()
