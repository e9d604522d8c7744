"""What must survive: a kill in the middle of every stage, and a disk that fills up in every stage.

Each stage is tried from a copy of a home that stands right before it; afterwards every file must be the one that an
undisturbed run made, so the stages that follow cannot tell the difference."""

from __future__ import annotations

import errno
import os
import random
from pathlib import Path
from typing import Any

import pytest

from lora_foundry import Character, Foundry
from lora_foundry.domain.run import ProgressEvent
from lora_foundry.errors import InputError, StorageError
from tests.homes import SMALL, STAGES, Homes, killed_at_write, lasting, run_until


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL and fork servers are POSIX")
@pytest.mark.parametrize("stage", STAGES)
def test_a_kill_in_any_stage_changes_nothing(stage: str, home: Path, homes: Homes, processes: Any) -> None:
    homes.copy(home, before=stage)
    killed_at_write(processes, home, stage, random.Random(stage).randrange(homes.writes[stage]))
    assert list(home.rglob("*.part*")), "the kill came while a file was written"
    killed_at_write(processes, home, stage, 0)
    run_until(home, stage)
    assert lasting(home) == lasting(homes.after(stage))


@pytest.mark.parametrize("stage", STAGES)
def test_a_full_disk_is_one_sentence_and_space_mends_it(stage: str, home: Path, homes: Homes) -> None:
    """The disk is full from one write of the stage on, and says so as a full file system does."""

    def full() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    homes.copy(home, before=stage)
    with pytest.raises(StorageError, match=r"full; free some space"):
        run_until(home, stage, strike=full, at_write=random.Random(stage).randrange(homes.writes[stage]))
    assert not list(home.rglob("*.part*"))
    run_until(home, stage)
    assert lasting(home) == lasting(homes.after(stage))


def test_two_runs_in_one_folder_are_refused(home: Path, elara: Character) -> None:
    met = 0

    def start_another(event: ProgressEvent) -> None:
        nonlocal met
        with pytest.raises(InputError, match="Another run"):
            Foundry(home).create(elara, "mini", settings=SMALL)
        met += 1
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Foundry(home).create(elara, "mini", settings=SMALL, progress=start_another)
    assert met == 1
