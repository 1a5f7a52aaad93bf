"""Kernels for what PyTorch and cuDNN do slowly on a GPU, in Triton. Without a GPU or Triton nothing here is used.

Measured on an H100 for seed 000's model (results/speed): batch norm with SiLU took 25 to 46 % of a training step, the
convolutions from and to one channel 18 %, depthwise ones 7 %. All results are the same bit for bit in every run.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vqtune.gpu import usable as usable


def result_dtype(x: Tensor) -> torch.dtype:
    """What an operation on `x` gives under the present autocast."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def on_device(value: float | Tensor, near: Tensor) -> Tensor:
    """A number as a tensor beside `near`, as kernels want it."""
    return value if isinstance(value, Tensor) else torch.full((), value, device=near.device)
