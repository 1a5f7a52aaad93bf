"""The smallest kernel: where it compiles and starts, others do."""

from __future__ import annotations

from typing import no_type_check

import torch
import triton
import triton.language as tl


def launch(device: torch.device) -> None:
    """Raises whatever Triton raises."""
    x_1 = torch.empty(1, device=device)
    with torch.cuda.device_of(x_1):
        _probe[(1,)](x_1, num_warps=1)


@triton.jit(do_not_specialize=("x_ptr",))
@no_type_check
def _probe(x_ptr):
    tl.store(x_ptr, 1.0)
