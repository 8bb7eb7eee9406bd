"""The memory of the process: what is available to it, and the C library's heap, which keeps what was freed."""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
from pathlib import Path

M_MMAP_THRESHOLD, MAPPED_BYTES = -3, 8 << 20  # malloc.h
M_TRIM_THRESHOLD, KEPT_BYTES = -1, 32 << 20


def give_back() -> None:
    """Let malloc of the GNU C library give what was freed back to the system; does nothing with another library.

    On the demo model 16 MB after a vocabulary of 49,152 was read from JSON, and 12 MB after the weights were repacked.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def map_large() -> None:
    """Let malloc of the GNU C library give tensors of 8 MB and more back to the system when they are freed.

    By itself it raises that limit to what it has seen freed, and long-lived activations among short-lived ones then
    break the heap into holes: the peak of one and the same run was between 1,147 and 1,335 MB (docs/log.md).

    Up to KEPT_BYTES of smaller ones stay: with that limit set, malloc would give back every 128 KB, and a fifth of the
    time went into pages that came and went.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, MAPPED_BYTES)
        mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)


def available_bytes() -> int:
    """Return the memory that is free for us: of the machine, or of our control group if that has a limit.

    All that the machine has where the system does not tell.
    """
    found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with contextlib.suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        found = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    with contextlib.suppress(OSError, ValueError):  # "max" where there is no limit
        group = Path("/sys/fs/cgroup")
        limit, used = (int((group / name).read_text(encoding="ascii")) for name in ("memory.max", "memory.current"))
        found = min(found, limit - used)
    return max(0, found)


def as_limit(size_bytes: int) -> str:
    """Return the least --max-memory that is so much: "0.83GB" for 822,083,584 bytes."""
    return f"{math.ceil(size_bytes / 1e7) / 100:.2f}GB"
