"""Kernels for what PyTorch does slowly on a CPU, in C. Without a C compiler nothing here is used.

Batch norm with SiLU was a third of an epoch of seed 000's model on two cores, the convolution to one channel a sixth:
most of it memory that is read again and again (results/speed). They run in one thread, as trials of a search do.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch
from torch import Tensor

from vqtune import cpu

_HERE = Path(__file__).parent
_SOURCES = tuple(_HERE / name for name in ("silu.h", "norm.c", "last_layer.c", "grow.c"))
MOST_CHANNELS = 1024
"""As in norm.c."""


def compiled() -> bool:
    """Whether there are kernels on this machine; the first who asks waits for the compiler."""
    return cpu.library(*_SOURCES) is not None


def usable(x: Tensor) -> bool:
    """Whether `x` is where kernels run, with no more channels (dimension 1) than they take, and some data."""
    return cpu.usable(x) and x.shape[1] <= MOST_CHANNELS and x.numel() > 0 and compiled()


def lacking(x: Tensor) -> bool:
    """Whether kernels would run where `x` is, if only there were a compiler."""
    return cpu.usable(x) and not compiled()


def call(name: str, *arguments: Tensor | int | float) -> None:
    """A function of the library: tensors are dense and go as pointers, numbers as int64 and float.

    Raises MemoryError where the function says that it had none.
    """
    if getattr(cpu.library(*_SOURCES), name)(*map(_given, arguments)):
        raise MemoryError(f"no memory for {name}")


def rows(x: Tensor) -> int:
    """How many pixels a tensor has."""
    return x.numel() // x.shape[1]


def channels_last(x: Tensor) -> Tensor:
    """`x` with the channels of a pixel side by side in memory, a copy if they are not."""
    return x.contiguous(memory_format=torch.channels_last)


def _given(value: Tensor | int | float) -> ctypes.c_void_p | ctypes.c_int64 | ctypes.c_float:
    if isinstance(value, Tensor):
        return ctypes.c_void_p(value.data_ptr())
    return ctypes.c_float(value) if isinstance(value, float) else ctypes.c_int64(value)
