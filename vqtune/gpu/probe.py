"""A small kernel with an instruction of NVIDIA's: where it compiles and starts, others do."""

from __future__ import annotations

from typing import no_type_check

import torch
import triton
import triton.language as tl

from vqtune.gpu.tanh import tanh


def launch(device: torch.device) -> None:
    """Raises whatever Triton raises."""
    x_1 = torch.empty(1, device=device)
    with torch.cuda.device_of(x_1):
        _probe[(1,)](x_1, num_warps=1)


@triton.jit(do_not_specialize=("x_ptr",))
@no_type_check
def _probe(x_ptr):
    tl.store(x_ptr + tl.arange(0, 1), tanh(tl.zeros((1,), tl.float32)))
