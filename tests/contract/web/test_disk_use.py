"""What is freed, and what stays because somebody needs it."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from lora_foundry.files.locks import FolderLock
from lora_foundry.files.paths import RunPaths
from lora_foundry.settings import Settings
from lora_foundry.web import disk_use
from lora_foundry.web.problems import ConflictError


def _write(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * 100)
    return path


def test_only_what_a_training_keeps_is_freed(settings: Settings, paths: RunPaths) -> None:
    own = _write(paths.images / "training" / "checkpoints" / "photo.png")
    kept = [
        _write(folder / "training" / "cache" / "1") for folder in (paths.root, paths.round(1).images.parent)
    ]
    version = _write(paths.version(1) / "training" / "checkpoints" / "1")
    _write(paths.version(1) / "run.json")
    assert disk_use.free(settings, "checkpoints", nothing_runs=True).bytes == 300
    assert own.is_file()
    assert not any(path.exists() for path in (*kept, version))


def test_a_command_at_work_keeps_its_checkpoints(settings: Settings, paths: RunPaths) -> None:
    kept = _write(paths.training / "checkpoints" / "1")
    with FolderLock(paths.lock):
        assert disk_use.free(settings, "checkpoints", nothing_runs=True).bytes == 0
    assert kept.is_file()


def test_what_was_sent_just_now_and_the_logs_of_a_run_stay(settings: Settings) -> None:
    new, old = (_write(settings.home / "uploads" / name / "1.png") for name in ("new", "old"))
    long_ago = time.time() - disk_use.FRESH_SECONDS - 60
    os.utime(old.parent, (long_ago, long_ago))
    assert disk_use.free(settings, "uploads", nothing_runs=False).bytes == 100
    assert new.is_file()
    assert not old.exists()
    (sent,) = (use for use in disk_use.used(settings, nothing_runs=True) if use.freeable == "uploads")
    assert "last hour" in sent.held
    log = _write(settings.home / "logs" / "tasks" / "1.log")
    with pytest.raises(ConflictError):
        disk_use.free(settings, "logs", nothing_runs=False)
    assert log.is_file()
    assert disk_use.free(settings, "logs", nothing_runs=True).bytes == 100
