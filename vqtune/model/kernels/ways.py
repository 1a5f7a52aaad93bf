"""How the products of a chain gather their operands and read weights. Legend: that of `vqtune.model.kernels.chain`."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from vqtune.model.kernels import operands, product

ENOUGH = 264
"""Programs of a pass at most: two for each multiprocessor of a large GPU. More are faster alone, but keep the kernels
of other trials out (results/speed)."""
ROWS = 64
"""Rows of a tile of a product."""


class Operand(NamedTuple):
    """What a layer reads."""

    x: Tensor
    """(M, C, H, W), channels last: the values; of a norm's gradient dz."""
    coef: Tensor | None = None
    """(6, C): what is read is the activation of x, or with y the gradient of y. None: x itself."""
    y: Tensor | None = None

    @property
    def mode(self) -> int:
        mode = operands.PLAIN if self.coef is None else operands.NORMED if self.y is None else operands.LAZY
        return int(mode.value)


class Way(NamedTuple):
    """How a product gathers its operand of `channels`, and reads the weight's `outputs` columns."""

    kind: tl.constexpr
    taps: int
    channels: int
    outputs: int
    strides: tuple[int, int, int]
    """Of the weight, from a tap, a channel and an output to the next."""

    @property
    def sizes(self) -> dict[str, int]:
        WT, WC, WO = self.strides
        fixed = {"KIND": int(self.kind.value), "TAPS": self.taps, "C": self.channels, "CO": self.outputs}
        return fixed | {"WT": WT, "WC": WC, "WO": WO}

    @property
    def padded(self) -> tuple[int, int]:
        """Channels and outputs, as powers of two that a product can have."""
        return max(16, triton.next_power_of_2(self.channels)), max(16, triton.next_power_of_2(self.outputs))


def forward_way(kind: str, weight: Tensor) -> Way:
    """Of a layer's result."""
    s0, s1, _, s3 = weight.stride()
    match kind:
        case "point":
            return Way(operands.SAME, 1, weight.shape[1], weight.shape[0], (0, s1, s0))
        case "grow":
            return Way(operands.PARITY, 4, weight.shape[0], weight.shape[1], (s3, s0, s1))
        case _:  # to one: each pixel's products with the nine taps
            return Way(operands.SAME, 1, weight.shape[1], 9, (0, s1, s3))


def backward_way(kind: str, weight: Tensor) -> Way:
    """Of the gradient of a point's input; with this side gathered, also of the gradient of its or a grow's weight."""
    s0, s1, _, s3 = weight.stride()
    if kind == "point":
        return Way(operands.SAME, 1, weight.shape[0], weight.shape[1], (0, s0, s1))
    return Way(operands.STRIDED, 16, weight.shape[1], weight.shape[0], (s3, s1, s0))


def multiply(
    way: Way,
    operand: Operand,
    weight: Tensor,
    out: Tensor,
    rows: tuple[int, int, int],
    dtype: torch.dtype,
    *,
    bias: Tensor | None = None,
    near_C: Tensor | None = None,
    before: Operand | None = None,
) -> Tensor | None:
    """Writes a product of `rows` (M, H, W) to `out`, and gives partial sums, (2, G, outputs): with `near_C` of the
    result's moments, with `before` of its gradient through that activation."""
    M, H, W = rows
    n, (BK, BN) = M * H * W, way.padded
    BN = min(128, BN)
    BM = 32 if way.kind is operands.SAME or BN > 64 else ROWS  # more, and sums would not find registers
    sides, across = 4 if way.kind is operands.PARITY else 1, triton.cdiv(way.outputs, BN)
    plain = near_C is None and before is None
    tiles = triton.cdiv(n, BM)
    each = triton.cdiv(tiles * sides * across, ENOUGH)
    programs = triton.cdiv(tiles, each)
    part_2GC = None if plain else torch.empty(2, sides * programs, way.outputs, device=out.device)
    end = product.STORE if plain else product.MOMENTS if before is None else product.SILU
    product.product[(programs, across, sides)](
        operand.x,
        operand.y,
        operand.coef,
        weight,
        bias,
        out,
        None if before is None else before.x,
        None if before is None else before.coef,
        near_C,
        part_2GC,
        n,
        each,
        H=H,
        W=W,
        **way.sizes,
        MODE=operand.mode,
        END=int(end.value),
        FACTOR=factor(dtype),
        BM=BM,
        BK=32 if BK > way.channels > 64 and way.channels % 32 == 0 else min(64, BK),
        BN=BN,
        num_warps=8 if (64 if way.kind is operands.SAME else 32) < BN else 4,
        num_stages=2,
        maxnreg=128,
    )
    return part_2GC


def tiled(n: int, channels: int, elements: int) -> tuple[int, int, dict[str, int]]:
    """(tiles of a program, programs, sizes) of a pass over n pixels in tiles of some `elements`."""
    padded = triton.next_power_of_2(channels)
    P = max(1, elements // padded)
    each = triton.cdiv(triton.cdiv(n, P), ENOUGH)
    return each, triton.cdiv(triton.cdiv(n, P), each), {"C": channels, "P": P, "CP": padded}


def sides_of(H: int, W: int, HS: int, WS: int) -> dict[str, Any]:
    """Heights and widths of the rows' patches and of the operand's."""
    return {"H": H, "W": W, "HS": HS, "WS": WS}


def factor(dtype: torch.dtype) -> tl.dtype:
    """What products multiply."""
    return {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}.get(dtype, tl.float32)
