"""Copies of a training state on the host: one transfer from a GPU for each dtype, whatever the number of tensors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import repeat
from typing import Any

import torch
from torch import Tensor

from vqtune.train.transfer import fetch

_HOLE = "<tensor>"


class Snapshot:
    """A state (dicts, lists and tuples of tensors and plain values), ready to be copied again and again."""

    def __init__(self, state: Any) -> None:
        tensors = list(_tensors(state))
        self._groups = _by_dtype(t.detach() for t in tensors)
        self._layout = [(t.dtype, t.shape) for t in tensors]
        self._tree = _with(state, repeat(_HOLE))
        self._text = ";".join(f"{_name(t.dtype)} {'x'.join(map(str, t.shape))}" for t in tensors)

    def load(self, state: Any) -> None:
        """Copies a state of the same layout, on the CPU, into the tensors: a transfer for each dtype as well."""
        values = _by_dtype(_tensors(state))
        for dtype, group in self._groups.items():
            flat = torch.cat([t.reshape(-1) for t in values[dtype]]).to(group[0].device)
            parts = torch.split(flat, [t.numel() for t in group])
            torch._foreach_copy_(group, [part.view(t.shape) for part, t in zip(parts, group, strict=True)])

    def join(self) -> dict[torch.dtype, Tensor]:
        """What the tensors hold now, a flat tensor for each dtype on their device. It can be captured."""
        return {dtype: torch.cat([t.reshape(-1) for t in group]) for dtype, group in self._groups.items()}

    def to_host(self, joined: Mapping[torch.dtype, Tensor]) -> Any:
        """The state with a CPU copy of every tensor.

        Those of one dtype share one storage, so that a file of them has few records and is quick to write.
        """
        return _with(self._tree, _split(fetch(joined), self._layout))

    def packed(self, joined: Mapping[torch.dtype, Tensor]) -> dict[str, Any]:
        """The state as flat CPU tensors and what it takes to undo that: for files that only `unpacked` reads.

        To pickle some hundred small tensors takes longer than a short epoch, and keeps the interpreter from others.
        """
        flat = {_name(dtype): values for dtype, values in fetch(joined).items()}
        return {"flat": flat, "layout": self._text, "tree": self._tree}


def unpacked(pack: dict[str, Any]) -> Any:
    """What `packed` was given, on the CPU."""
    layout = []
    for entry in filter(None, pack["layout"].split(";")):
        name, _, shape = entry.partition(" ")
        layout.append((getattr(torch, name), torch.Size(int(n) for n in filter(None, shape.split("x")))))
    flat = {getattr(torch, name): values for name, values in pack["flat"].items()}
    return _with(pack["tree"], _split(flat, layout))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _split(flat: dict[torch.dtype, Tensor], layout: list[tuple[torch.dtype, torch.Size]]) -> Iterator[Tensor]:
    sizes = {dtype: [shape.numel() for d, shape in layout if d == dtype] for dtype in flat}
    parts = {dtype: iter(torch.split(values, sizes[dtype])) for dtype, values in flat.items()}
    return (next(parts[dtype]).view(shape) for dtype, shape in layout)


def _by_dtype(tensors: Iterable[Tensor]) -> dict[torch.dtype, list[Tensor]]:
    groups: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors:
        groups.setdefault(tensor.dtype, []).append(tensor)
    return groups


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
