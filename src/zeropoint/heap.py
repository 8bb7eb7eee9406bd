"""The heap of the C library, where what Python and the kernels free stays with the process unless it is asked for."""

from __future__ import annotations

import ctypes

M_MMAP_THRESHOLD, MAPPED_BYTES = -3, 8 << 20  # malloc.h


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
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, MAPPED_BYTES)
