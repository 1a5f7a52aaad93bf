"""A copy of a training state on the host: one transfer from a GPU, whatever the number of tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def to_host(state: Any) -> Any:
    """`state` (dicts, lists and tuples of tensors and plain values) with a CPU copy of every tensor.

    Tensors of one dtype share one storage afterwards, so that a file of them has few records and is quick to write.
    """
    tensors: list[Tensor] = []
    _visit(state, tensors)
    groups: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    for n, tensor in enumerate(tensors):
        groups.setdefault((tensor.device, tensor.dtype), []).append(n)
    copies: dict[int, Tensor] = {}
    for members in groups.values():
        flat = torch.cat([tensors[n].detach().reshape(-1) for n in members]).cpu()
        parts = torch.split(flat, [tensors[n].numel() for n in members])
        copies |= {n: part.view(tensors[n].shape) for n, part in zip(members, parts, strict=True)}
    return _rebuilt(state, iter(copies[n] for n in range(len(tensors))))


def _visit(node: Any, found: list[Tensor]) -> None:
    match node:
        case Tensor():
            found.append(node)
        case dict():
            for value in node.values():
                _visit(value, found)
        case list() | tuple():
            for value in node:
                _visit(value, found)


def _rebuilt(node: Any, copies: Any) -> Any:
    match node:
        case Tensor():
            return next(copies)
        case dict():
            return {key: _rebuilt(value, copies) for key, value in node.items()}
        case list():
            return [_rebuilt(value, copies) for value in node]
        case tuple():
            return tuple(_rebuilt(value, copies) for value in node)
        case _:
            return node
