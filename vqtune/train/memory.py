"""How a process on a CPU keeps its memory."""

from __future__ import annotations

import ctypes
from functools import cache

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST = 1 << 30
"""Bytes: no tensor of a step is larger."""


@cache
def keep_freed_pages() -> bool:
    """Has the C library keep what tensors free for the next ones; False where it cannot be told.

    glibc gives each large block back to the system at once: its pages are then faulted in and zeroed again by the next
    operation, which took a fifth of an epoch's CPU time and more than half of an evaluation's.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # not glibc
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _LARGEST) and mallopt(_M_TRIM_THRESHOLD, _LARGEST))
