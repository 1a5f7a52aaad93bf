"""Whether this process can use kernels of its own on a GPU. Who has some asks here and keeps a path without."""

from __future__ import annotations

import logging
import os
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

from vqtune.errors import first_line

_QUEUES, _MANY = "CUDA_DEVICE_MAX_CONNECTIONS", "32"


def expect_many_trials() -> None:
    """Gives this process, which is to hold many trials on a GPU, more queues between their streams and the GPU.

    To be called before it first uses CUDA, whose 8 queues cost sixteen trials 3 %. Of sixteen processes with 32 each,
    three fail with `CUDA error: out of memory` (H200), so a process of one trial keeps CUDA's default.
    """
    os.environ.setdefault(_QUEUES, _MANY)


def expect_one_trial() -> None:
    """Undoes it for a process that has inherited it; any other number is the user's and stays."""
    if os.environ.get(_QUEUES) == _MANY:
        del os.environ[_QUEUES]


@cache
def _works(device: torch.device) -> bool:
    """Whether Triton is there and compiles: it needs a C compiler and Python's headers, which slim images lack."""
    if find_spec("triton") is None:
        return False
    try:
        from vqtune.gpu import probe

        probe.launch(device)
    except Exception as error:
        logging.getLogger(__name__).warning(
            "Triton does not work here (%s): training goes on with PyTorch's operations, which are slower",
            first_line(error),
        )
        return False
    return True


def usable(x: Tensor) -> bool:
    """Whether `x` is where kernels run."""
    return x.is_cuda and _works(x.device)
