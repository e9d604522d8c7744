"""What must survive: a kill at a random moment of every stage, and a disk that fills up in every stage."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lora_foundry import Character, Foundry
from lora_foundry.domain.run import ProgressEvent
from lora_foundry.errors import StorageError
from lora_foundry.files import storage
from tests.conftest import SMALL

STAGES = ("generate", "curate", "caption", "train", "evaluate", "publish")

KILLED_RUN = """
import os, random, signal, sys
from lora_foundry import Character, Foundry
stage, skip, home, *settings = sys.argv[1:]
seen = 0
def progress(event):
    global seen
    seen += event.stage == stage
    if event.stage == stage and seen > int(skip):
        os.kill(os.getpid(), signal.SIGKILL)
character = Character(name="Elara", description="1girl, brown hair, long hair, blue eyes, red dress, crown")
Foundry(home).create(character, "mini", settings=settings, progress=progress)
"""


def final_files(home: Path) -> dict[str, str]:
    """Hashes of everything that must not depend on how often a run was interrupted."""
    folder = home / "datasets" / "Elara"
    kept = [*folder.glob("images/*"), folder / "training" / "lora.safetensors", folder / "training" / "loss.csv",
            folder / "tagging_results.json", *folder.glob("evaluation/pictures/*/*.png"),
            folder / "evaluation" / "before_after.png", *(home / "loras").glob("*.safetensors")]  # fmt: skip
    return {str(path.relative_to(home)): hashlib.sha256(path.read_bytes()).hexdigest() for path in kept}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    home = tmp_path_factory.mktemp("undisturbed")
    character = Character(
        name="Elara", description="1girl, brown hair, long hair, blue eyes, red dress, crown"
    )
    Foundry(home).create(character, "mini", settings=SMALL)
    return final_files(home)


@pytest.mark.parametrize("stage", STAGES)
def test_a_kill_in_any_stage_changes_nothing(
    stage: str, home: Path, elara: Character, undisturbed: dict[str, str]
) -> None:
    skip = random.Random(stage).randrange(3)
    killed = subprocess.run(
        [sys.executable, "-c", KILLED_RUN, stage, str(skip), str(home), *SMALL],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert killed.returncode in (-signal.SIGKILL, 0), killed.stderr
    if stage in ("generate", "train", "evaluate"):
        assert killed.returncode == -signal.SIGKILL
    Foundry(home).create(elara, "mini", settings=SMALL)
    assert final_files(home) == undisturbed
    assert not list(home.rglob("*.part*"))


@pytest.mark.parametrize("stage", STAGES)
def test_a_full_disk_is_one_sentence_and_space_mends_it(
    stage: str, home: Path, elara: Character, undisturbed: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full from the first news of the stage on, as a write to a full file system reports it."""
    full = False
    real = os.fsync

    def progress(event: ProgressEvent) -> None:
        nonlocal full
        full = full or event.stage == stage

    def fsync(descriptor: int) -> None:
        if full:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(storage.os, "fsync", fsync)
    with pytest.raises(StorageError, match=r"full; free some space"):
        Foundry(home).create(elara, "mini", settings=SMALL, progress=progress)
    assert not list(home.rglob("*.part*"))
    monkeypatch.undo()
    Foundry(home).create(elara, "mini", settings=SMALL)
    assert final_files(home) == undisturbed


def test_two_runs_in_one_folder_are_refused(home: Path, elara: Character) -> None:
    from lora_foundry.errors import InputError

    def start_another(event: ProgressEvent) -> None:
        with pytest.raises(InputError, match="Another run"):
            Foundry(home).create(elara, "mini", settings=SMALL)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Foundry(home).create(elara, "mini", settings=SMALL, progress=start_another)
