"""Where to compute."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lora_foundry.bases import devices
from lora_foundry.errors import InputError


def test_a_container_quota_limits_the_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)), raising=False)
    quota = tmp_path / "cpu.max"
    monkeypatch.setattr(devices, "_QUOTA_V2", quota)
    for text, cores in (("200000 100000", 2), ("50000 100000", 1), ("max 100000", 64), ("nonsense", 64)):
        quota.write_text(text)
        assert devices.available_cores() == cores


def test_a_container_limits_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = devices.total_memory()
    assert 0 < devices.available_memory() <= whole
    limit, used = tmp_path / "memory.max", tmp_path / "memory.current"
    monkeypatch.setattr(devices, "_MEMORY_V2", (limit, used))
    used.write_text("60000000\n")
    for text, total, left in (("100000000\n", 100_000_000, 40_000_000), ("50000000", 50_000_000, 0)):
        limit.write_text(text)
        assert (devices.total_memory(), devices.available_memory()) == (total, left)
    limit.write_text("max")
    assert devices.total_memory() == whole


def test_threads_that_the_user_chose_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(devices, "available_cores", lambda: before + 5)
    assert devices.use_available_cores() == before


def test_devices_by_name() -> None:
    assert devices.find_device("cpu").type == "cpu"
    assert devices.find_device("auto") == devices.choose_device()
    for name in ("gpu", "cuda:999"):
        with pytest.raises(InputError, match=name):
            devices.find_device(name)


def test_a_cpu_computes_in_what_it_is_fast_at(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    assert devices.choose_dtype("fp16", cpu) == torch.float32
    for has, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(devices, "cpu_has_bf16", lambda has=has: has)
        assert devices.choose_dtype("bf16", cpu) == dtype
    assert devices.choose_dtype("fp16", torch.device("cuda")) == torch.float16


LIBRARY, VERSION = platform.libc_ver()
GLIBC = tuple(int(part) for part in VERSION.split(".")) if LIBRARY == "glibc" else (0,)

FAULTS = """
import resource, torch
from contextlib import nullcontext
from lora_foundry.bases.devices import freed_memory_kept

def faults():
    for number in range(40):
        if number == 30:  # by then the heap has found its size
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(25 << 20)  # 100 MB, freed at once
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

for around in (nullcontext(), freed_memory_kept(torch.device("cpu"))):
    with around:
        print(faults())
"""


@pytest.mark.skipif(GLIBC < (2, 35), reason="no glibc, or one that keeps no block of this size")
def test_freed_memory_is_kept_while_it_is_asked_for() -> None:
    """Pages that came back from the system in ten allocations of 25,600: all of them without it, none with it."""
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    without, within = (int(line) for line in done.stdout.split())
    assert within < 100 < without


def test_other_devices_have_memory_of_their_own() -> None:
    with devices.freed_memory_kept(torch.device("meta")):
        pass
