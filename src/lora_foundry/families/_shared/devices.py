"""Where to compute: which device, in which number format, and on how many cores.

More threads than cores make torch several times slower, and inside a container it sees the host's cores. And the
system's way with freed memory, which costs a computation on a CPU a few percent of its time."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import torch

from lora_foundry.errors import InputError

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of glibc's mallopt(3)
_MOST = (1 << 31) - 1
_LARGE = 32 << 20  # the largest block that glibc before 2.35 can be told to keep, and what it comes to alone
_MEMORY_V2 = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
_MEMORY_V1 = (
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
    Path("/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)
_QUOTA_V2 = Path("/sys/fs/cgroup/cpu.max")
_QUOTA_V1 = Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us")
_PERIOD_V1 = Path("/sys/fs/cgroup/cpu/cpu.cfs_period_us")


def choose_device() -> torch.device:
    """The best device there is: CUDA (or ROCm), Apple's, or the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def find_device(name: str) -> torch.device:
    """The device called `name`, where `auto` is the best. Raises InputError if this machine has none of that
    name."""
    if name == "auto":
        return choose_device()
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"{name!r} is no device; use auto, cpu, cuda or cuda:N.") from error
    # torch keeps the number in one byte: cuda:999 arrives as a negative one.
    if device.type == "cuda" and not 0 <= (device.index or 0) < torch.cuda.device_count():
        raise InputError(
            f"The device {name} was asked for, but torch finds {torch.cuda.device_count()} CUDA devices."
        )
    return device


def choose_dtype(precision: str, device: torch.device) -> torch.dtype:
    """The torch type for a precision's name. A CPU computes fp16 as fp32, and bf16 too unless it has
    instructions for it: without them it is slower. An NVIDIA GPU before Ampere (compute capability 8.0), which only
    imitates bf16, computes it as fp16. An Apple GPU computes fp16 as bf16, whose gradients need no scaling, and
    before macOS 14, which has no bf16, both as fp32."""
    dtype = PRECISIONS[precision]
    if device.type == "cuda" and dtype == torch.bfloat16 and not cuda_has_bf16():
        return torch.float16
    if device.type == "mps" and dtype != torch.float32:
        return torch.bfloat16 if torch.backends.mps.is_macos_or_newer(14, 0) else torch.float32
    if device.type != "cpu" or (dtype == torch.bfloat16 and cpu_has_bf16()):
        return dtype
    return torch.float32


def cuda_has_bf16() -> bool:
    """Whether the current NVIDIA or AMD GPU multiplies bf16 itself."""
    return bool(torch.cuda.is_bf16_supported(including_emulation=False))


def cpu_has_bf16() -> bool:
    """Whether this CPU multiplies bf16 itself (AVX-512 BF16 or AMX)."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def available_cores() -> int:
    """Cores this process may really use: its affinity, cut by a container's quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota()
    return max(1, min(cores, round(quota))) if quota else max(1, cores)


def use_available_cores() -> int:
    """Sets torch's threads to the usable cores, unless OMP_NUM_THREADS already says how many; returns the
    number."""
    if not os.environ.get("OMP_NUM_THREADS"):
        torch.set_num_threads(available_cores())
    return torch.get_num_threads()


def total_memory() -> int:
    """Bytes of main memory that this process could ever have: the computer's, cut by a container's limit."""
    whole: int = psutil.virtual_memory().total
    return min([whole, *(limit for limit, _ in _memory_limits())])


def available_memory() -> int:
    """Bytes of main memory that are free for this process, in a container less what it uses, caches too."""
    free: int = psutil.virtual_memory().available
    return max(0, min([free, *(limit - used for limit, used in _memory_limits())]))


def _memory_limits() -> list[tuple[int, int]]:
    """The control group's limit and use, where there is one."""
    found = []
    for limit, used in (_MEMORY_V2, _MEMORY_V1):
        try:
            found.append((int(limit.read_text()), int(used.read_text())))
        except (OSError, ValueError):  # no such group, or "max"
            continue
    return found


def give_memory_back() -> None:
    """Gives the system back what torch keeps of a GPU's memory for the next tensors. Where torch refuses, nothing is lost but
    that memory: one before 2.13 does so once a recording of CUDA graphs has failed, for the rest of the process."""
    with suppress(RuntimeError):
        torch.cuda.empty_cache()


@contextmanager
def freed_memory_kept(device: torch.device) -> Iterator[None]:
    """While it lasts, the C library keeps what is freed for the next allocation. It would give every large block back
    to the system, and each step of a computation on a CPU then waits while the pages come anew, filled with zeros.
    Does nothing for other devices, nor where the C library is not glibc."""
    library = ctypes.CDLL(None) if sys.platform == "linux" and device.type == "cpu" else None
    if library is None or not hasattr(library, "mallopt"):
        yield
        return
    try:
        if not library.mallopt(_MMAP_THRESHOLD, _MOST):
            library.mallopt(_MMAP_THRESHOLD, _LARGE)
        library.mallopt(_TRIM_THRESHOLD, _MOST)
        yield
    finally:
        library.mallopt(_MMAP_THRESHOLD, _LARGE)
        library.mallopt(_TRIM_THRESHOLD, 2 * _LARGE)
        library.malloc_trim(0)


def _quota() -> float | None:
    """CPUs that the control group grants, where it limits them."""
    try:
        if _QUOTA_V2.exists():
            limit, period = _QUOTA_V2.read_text().split()[:2]
        else:
            limit, period = _QUOTA_V1.read_text(), _PERIOD_V1.read_text()
        return int(limit) / int(period) if int(limit) > 0 else None
    except (OSError, ValueError):
        return None
