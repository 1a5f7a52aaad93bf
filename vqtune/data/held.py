"""Constants on a device, made once for all trials of a process."""

from __future__ import annotations

import torch
from torch import Tensor


def held(value: Tensor, device: torch.device) -> Tensor:
    """`value` on the device, ready for every stream: trials in other threads use it without asking.

    To be called before a step is captured; its warm-up does.
    """
    moved = value.to(device)
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()
    return moved
