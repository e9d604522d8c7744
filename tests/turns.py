"""More tests at once than there are cores: those that wait (for a heartbeat that fails to come, for a process to die) beside
those that compute. Of the latter no more run than there are cores: a browser or a child's patience would starve else."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

# Files of tests that compute for less than two fifths of their time, and so run without a turn.
WAITING = frozenset(
    f"tests/{name}.py"
    for name in (
        *("acceptance/test_create_through_table", "acceptance/test_example", "acceptance/test_two_hosts"),
        *("browser/test_own_pictures", "contract/test_children", "contract/test_comfyui_client"),
        *(
            "contract/test_comfyui_command",
            "contract/test_comfyui_generator",
            "contract/test_comfyui_leftovers",
        ),
        *("contract/test_comfyui_places", "contract/test_echo", "contract/test_failing_stages"),
        *(
            "contract/test_notifications",
            "contract/test_queues",
            "contract/test_remote",
            "contract/test_worker",
        ),
        *("contract/web/test_events", "host/test_beside", "unit/test_doctor", "unit/test_gpu_room"),
    )
)
LOOK = 0.02  # seconds between looks for a turn


CORES = (
    len(psutil.Process().cpu_affinity()) if hasattr(psutil.Process, "cpu_affinity") else psutil.cpu_count()
)


@contextmanager
def a_turn(folder: Path, number: int) -> Iterator[int]:
    """Waits for one of `number` turns and gives which. `folder` is the same for all workers."""
    locks = [FileLock(folder / f"turn-{each}") for each in range(number)]
    while True:
        for place, lock in enumerate(locks):
            try:
                lock.acquire(blocking=False)
            except Timeout:
                continue
            try:
                yield place
            finally:
                lock.release()
            return
        time.sleep(LOOK)
