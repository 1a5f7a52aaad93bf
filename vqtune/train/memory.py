"""How a process on a CPU keeps its memory, and how much one has needed."""

from __future__ import annotations

import ctypes
import resource
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vqtune.train.loop import Loop

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


def peak_memory(loop: Loop | None = None) -> int:
    """Bytes: on a GPU of a captured trial or else of the allocator, on a CPU of the process since it started."""
    import torch

    if torch.cuda.is_available():
        return (0 if loop is None else loop.rig.bytes) or int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
