"""The weights of a chain: as products read them, and their gradients. Legend: that of `vqtune.model.kernels.chain`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import torch
import triton
from torch import Tensor, nn

from vqtune.model.kernels import moments, product
from vqtune.model.kernels.first import first_programs
from vqtune.model.kernels.last import last_programs
from vqtune.model.kernels.layers import thin_programs
from vqtune.model.kernels.ways import ENOUGH, ROWS, Operand, Way, backward_way, factor, sides_of

Convolution = nn.Conv2d | nn.ConvTranspose2d
_FEW, _MORE, _LONG = 16, 66, 8192
"""Programs of a large weight's gradient: so many, or up to so many where one would have more rows than that. To store
partial gradients keeps other trials from the memory: with 66 always sixteen trials of few rows are 5 % slower, and one
alone 7 % faster."""
_WHOLE = 1 << 18
"""Elements of partial gradients up to which there may be `ENOUGH` programs."""
_ADDED = {"E": 256, "G": 8}
"""Elements of a weight of a program that adds up partial gradients, and how many it adds at once."""


def factors(convs: Sequence[Convolution], dtype: torch.dtype) -> list[Tensor]:
    """The weights in `dtype`, as they lie."""
    weights = [conv.weight.detach() for conv in convs]
    if weights[0].dtype == dtype:
        return weights
    flat = torch.empty(sum(w.numel() for w in weights), dtype=dtype, device=weights[0].device)
    parts = torch.split(flat, [w.numel() for w in weights])
    made = [part.as_strided(w.shape, w.stride(), part.storage_offset()) for part, w in zip(parts, weights, strict=True)]
    torch._foreach_copy_(made, weights)
    return made


class WeightGradients:
    """Partial gradients of all weights of a chain, in one tensor, and their sums in another."""

    def __init__(self, kinds: Sequence[str], convs: Sequence[Convolution], inputs: Sequence[Operand]) -> None:
        self._convs = convs
        self._shares = [_share(*given) for given in zip(kinds, convs, inputs, strict=True)]
        self._part = torch.empty(sum(s.programs * s.elements for s in self._shares), device=convs[0].weight.device)

    def part(self, at: int) -> Tensor:
        """Where layer `at` puts its G partial gradients: (G, elements) of its weight, in its order, and bias."""
        begin = sum(s.programs * s.elements for s in self._shares[:at])
        share = self._shares[at]
        return self._part[begin : begin + share.programs * share.elements].view(share.programs, share.elements)

    def add(self, at: int, kind: str, back: Operand, operand: Operand, dtype: torch.dtype) -> None:
        """Of a layer whose input's gradient does not bring it along."""
        part_GE, conv = self.part(at), self._convs[at]
        if conv.bias is not None:
            of_bias = part_GE[:, conv.weight.numel() :].zero_()
            of_bias[0] = back.x.sum(dim=(0, 2, 3))
        way = backward_way(kind, conv.weight)
        n, (BK, BN) = _pixels(kind, operand), _tile(way)
        product.weight_products[(len(part_GE), *_blocks(way))](
            back.x,
            back.y,
            back.coef,
            operand.x,
            operand.y,
            operand.coef,
            part_GE,
            n,
            ROWS * triton.cdiv(triton.cdiv(n, ROWS), len(part_GE)),
            part_GE.shape[1],
            **sides_of(*operand.x.shape[2:], *back.x.shape[2:]),
            **way.sizes,
            MODE=back.mode,
            OTHER=operand.mode,
            FACTOR=factor(dtype),
            BM=ROWS,
            BK=BK,
            BN=BN,
            num_warps=8 if way.taps == 1 or BK * BN > 2048 else 4,
            num_stages=3,
        )

    def totals(self) -> list[list[Tensor]]:
        """The gradients of each layer's weight and, where there is one, bias."""
        plan = _plan(tuple(self._shares), self._part.device)
        out = torch.empty(sum(s.elements for s in self._shares), device=self._part.device)
        moments.totals[(len(plan),)](self._part, plan, out, **_ADDED, num_warps=4)
        made, begin = [], 0
        for share, conv in zip(self._shares, self._convs, strict=True):
            weight = conv.weight
            made.append([out.as_strided(weight.shape, weight.stride(), begin)])
            if conv.bias is not None:
                made[-1].append(out[begin + weight.numel() : begin + share.elements])
            begin += share.elements
        return made


class _Share(NamedTuple):
    programs: int
    elements: int


def _share(kind: str, conv: Convolution, operand: Operand) -> _Share:
    elements = conv.weight.numel() + (0 if conv.bias is None else conv.bias.numel())
    n = _pixels(kind, operand)
    match kind:
        case "from one":  # comes as a whole
            return _Share(1, elements)
        case "second":
            return _Share(first_programs(n, len(conv.weight))[1], elements)
        case "thin" | "level":
            return _Share(thin_programs(n, len(conv.weight))[1], elements)
        case "to one":
            return _Share(last_programs(n, conv.weight.shape[1])[1], elements)
    tiles = triton.cdiv(n, ROWS)
    blocks = math.prod(_blocks(backward_way(kind, conv.weight)))
    few, more = triton.cdiv(_FEW, blocks), triton.cdiv(_MORE, blocks)
    most = max(few, min(more, triton.cdiv(n, _LONG)), min(ENOUGH, _WHOLE // elements))
    return _Share(triton.cdiv(tiles, triton.cdiv(tiles, most)), elements)


def _pixels(kind: str, operand: Operand) -> int:
    """Of the smaller side of a layer."""
    M, _, H, W = operand.x.shape
    return M * ((H + 1) // 2 * ((W + 1) // 2) if kind in ("second", "thin") else H * W)


def _tile(way: Way) -> tuple[int, int]:
    return min(64, way.padded[0]), min(128, way.padded[1])


def _blocks(way: Way) -> tuple[int, int]:
    """Programs across a weight's gradient."""
    BK, BN = _tile(way)
    return triton.cdiv(way.channels, BK) * (4 if way.taps == 16 else 1), triton.cdiv(way.outputs, BN)


@cache
def _plan(shares: tuple[_Share, ...], device: torch.device) -> Tensor:
    """What each program of `moments.totals` adds up."""
    rows, begin, to = [], 0, 0
    for share in shares:
        for e in range(0, share.elements, _ADDED["E"]):
            rows.append((begin + e, share.programs, share.elements, to + e, share.elements - e))
        begin += share.programs * share.elements
        to += share.elements
    made = torch.tensor(rows, dtype=torch.int32).to(device)
    if device.type == "cuda":  # read from many streams
        torch.cuda.current_stream(device).synchronize()
    return made
