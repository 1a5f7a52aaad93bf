"""Kernels for what PyTorch and cuDNN do slowly on a GPU, in Triton. Without a GPU or Triton nothing here is used.

Measured on an H100 for seed 000's model (results/speed): batch norm with SiLU took 25 to 46 % of a training step, the
convolutions from and to one channel 18 %, depthwise ones 7 %. All results are the same bit for bit in every run.
"""

from __future__ import annotations

import logging
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

from vqtune.errors import first_line


@cache
def _works(device: torch.device) -> bool:
    """Whether Triton is there and compiles: it needs a C compiler and Python's headers, which slim images lack."""
    if find_spec("triton") is None:
        return False
    try:
        from vqtune.model.kernels.norm import batch_norm_silu

        one_8 = torch.ones(8, device=device)
        batch_norm_silu(one_8.view(1, 8, 1, 1), one_8, one_8, one_8, one_8, training=False, momentum=0.1, eps=1e-5)
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


def result_dtype(x: Tensor) -> torch.dtype:
    """What an operation on `x` gives under the present autocast."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
