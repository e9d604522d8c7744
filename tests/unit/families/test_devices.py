"""Where to compute."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lora_foundry.errors import InputError
from lora_foundry.families._shared import devices


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
    for able, dtype in ((True, torch.bfloat16), (False, torch.float16)):  # Ampere and later; Turing
        monkeypatch.setattr(devices, "cuda_has_bf16", lambda able=able: able)
        assert devices.choose_dtype("bf16", torch.device("cuda")) == dtype
    for new, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(torch.backends.mps, "is_macos_or_newer", lambda *_, new=new: new)
        assert devices.choose_dtype("fp16", torch.device("mps")) == dtype
        assert devices.choose_dtype("fp32", torch.device("mps")) == torch.float32


LIBRARY, VERSION = platform.libc_ver()
GLIBC = tuple(int(part) for part in VERSION.split(".")) if LIBRARY == "glibc" else (0,)

FAULTS = """
import resource, torch
from contextlib import nullcontext
from lora_foundry.families._shared.devices import freed_memory_kept

def faults():
    for number in range(40):
        if number == 30:  # by then the heap has found its size
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(25 << 20)  # 100 MB, freed at once: more than glibc ever keeps by itself
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

for around in (nullcontext(), freed_memory_kept(torch.device("cpu"))):
    with around:
        print(faults())
"""


@pytest.mark.slow
# What the call says is tested below on every system; its effect shows at this size only where glibc can be told of it.
@pytest.mark.skipif(GLIBC < (2, 35), reason="no glibc, or one before 2.35, which keeps no block over 32 MB")
def test_freed_memory_is_kept_while_it_is_asked_for() -> None:
    """Pages that came back from the system in ten allocations of 25,600: all of them without it, none with it."""
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    without, within = (int(line) for line in done.stdout.split())
    assert within < 100 < without


class Library:
    """A C library that notes what it is told, and refuses thresholds above `most` as glibc before 2.35 does."""

    def __init__(self, most: int = 1 << 31) -> None:
        self.most, self.told, self.trims = most, dict[int, int](), 0

    def mallopt(self, name: int, value: int) -> int:
        if name == devices._MMAP_THRESHOLD and value > self.most:
            return 0
        self.told[name] = value
        return 1

    def malloc_trim(self, pad: int) -> int:
        self.trims += 1
        return 1


@pytest.mark.parametrize(("most", "kept"), [(1 << 31, (1 << 31) - 1), (32 << 20, 32 << 20)])
def test_what_the_c_library_is_told_is_taken_back_even_after_an_error(
    most: int, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = Library(most)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(devices.ctypes, "CDLL", lambda name: library)

    def break_off() -> None:
        with devices.freed_memory_kept(torch.device("cpu")):
            assert library.told == {devices._MMAP_THRESHOLD: kept, devices._TRIM_THRESHOLD: (1 << 31) - 1}
            raise KeyError

    with pytest.raises(KeyError):
        break_off()
    assert library.told == {devices._MMAP_THRESHOLD: 32 << 20, devices._TRIM_THRESHOLD: 64 << 20}
    assert library.trims == 1


@pytest.mark.parametrize(("system", "device"), [("linux", "meta"), ("darwin", "cpu"), ("win32", "cpu")])
def test_other_devices_and_systems_are_told_nothing(
    system: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = Library()
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(devices.ctypes, "CDLL", lambda name: library)
    with devices.freed_memory_kept(torch.device(device)):
        pass
    assert (library.told, library.trims) == ({}, 0)


def test_a_c_library_without_the_call_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """As musl is: it has no mallopt."""
    monkeypatch.setattr(sys, "platform", "linux")
    asked: list[object] = []
    monkeypatch.setattr(devices.ctypes, "CDLL", lambda name: asked.append(name) or object())
    with devices.freed_memory_kept(torch.device("cpu")):
        pass
    assert asked == [None]
