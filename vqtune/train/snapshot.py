"""Copies of a training state on the host: one transfer from a GPU for each dtype, whatever the number of tensors."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import repeat
from typing import Any

import torch
from torch import Tensor

_HOLE = "<tensor>"


def to_host(state: Any) -> Any:
    """`state` (dicts, lists and tuples of tensors and plain values) with a CPU copy of every tensor.

    Tensors of one dtype share one storage afterwards, so that a file of them has few records and is quick to write.
    """
    tensors = list(_tensors(state))
    return _with(state, _split(_joined(tensors), [(t.dtype, t.shape) for t in tensors]))


def packed(state: Any) -> dict[str, Any]:
    """`state` as a flat CPU tensor for each dtype and what it takes to undo that: for files that only `unpacked` reads.

    To pickle some hundred small tensors takes longer than a short epoch, and keeps the interpreter from other trials.
    """
    tensors = list(_tensors(state))
    layout = ";".join(f"{str(t.dtype).removeprefix('torch.')} {'x'.join(map(str, t.shape))}" for t in tensors)
    flat = {str(dtype).removeprefix("torch."): values for dtype, values in _joined(tensors).items()}
    return {"flat": flat, "layout": layout, "tree": _with(state, repeat(_HOLE))}


def unpacked(pack: dict[str, Any]) -> Any:
    """What `packed` was given, on the CPU."""
    layout = []
    for entry in filter(None, pack["layout"].split(";")):
        name, _, shape = entry.partition(" ")
        layout.append((getattr(torch, name), torch.Size(int(n) for n in filter(None, shape.split("x")))))
    flat = {getattr(torch, name): values for name, values in pack["flat"].items()}
    return _with(pack["tree"], _split(flat, layout))


def _joined(tensors: list[Tensor]) -> dict[torch.dtype, Tensor]:
    groups: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors:
        groups.setdefault(tensor.dtype, []).append(tensor.detach().reshape(-1))
    return {dtype: torch.cat(group).cpu() for dtype, group in groups.items()}


def _split(flat: dict[torch.dtype, Tensor], layout: list[tuple[torch.dtype, torch.Size]]) -> Iterator[Tensor]:
    sizes = {dtype: [shape.numel() for d, shape in layout if d == dtype] for dtype in flat}
    parts = {dtype: iter(torch.split(values, sizes[dtype])) for dtype, values in flat.items()}
    return (next(parts[dtype]).view(shape) for dtype, shape in layout)


def _tensors(node: Any) -> Iterator[Tensor]:
    match node:
        case Tensor():
            yield node
        case dict():
            for value in node.values():
                yield from _tensors(value)
        case list() | tuple():
            for value in node:
                yield from _tensors(value)


def _with(node: Any, leaves: Iterator[Any]) -> Any:
    """`node` with the next of `leaves` in place of every tensor or hole."""
    match node:
        case Tensor():
            return next(leaves)
        case str() if node == _HOLE:
            return next(leaves)
        case dict():
            return {key: _with(value, leaves) for key, value in node.items()}
        case list():
            return [_with(value, leaves) for value in node]
        case tuple():
            return tuple(_with(value, leaves) for value in node)
        case _:
            return node
