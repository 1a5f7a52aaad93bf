"""Whether this process can use kernels of its own on a GPU. Who has some asks here and keeps a path without."""

from __future__ import annotations

import logging
import os
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

from vqtune.errors import first_line

os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "32")
"""Queues between the trials' streams and the GPU, read when a process first uses CUDA; with its default
of 8 sixteen trials are 3 % slower."""


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
