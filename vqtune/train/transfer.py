"""Reads from a GPU that wait asleep. Torch's own keep a processor busy while they wait, of each trial one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import Tensor

K = TypeVar("K")


def rest(device: torch.device) -> None:
    """Waits for what is queued on the current stream; on a CPU nothing is."""
    if device.type == "cuda":
        event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        event.record()
        event.synchronize()


def fetch(values: Mapping[K, Tensor]) -> dict[K, Tensor]:
    """Copies on the host of tensors of one device, those of a CPU themselves.

    Through pinned memory, which torch keeps for the next ones: a copy to other memory goes in many pieces, each of
    which has its turn among the launches of all other trials.
    """
    copies = {
        key: torch.empty_like(value, device="cpu", pin_memory=True).copy_(value, non_blocking=True)
        if value.is_cuda
        else value
        for key, value in values.items()
    }
    for device in {value.device for value in values.values()}:
        rest(device)
    return copies
