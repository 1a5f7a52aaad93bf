"""The way back through a 1 x 1 convolution of a chain: the gradients of its input and of its weight in one pass.

Legend: that of `vqtune.model.kernels.chain`; BM rows of a tile, CP and OP the channels of input and result (padded to
powers of two).
"""

from __future__ import annotations

from typing import no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from vqtune.model.kernels.operands import NORMED, PLAIN, coefficients_of, mean_of, operand
from vqtune.model.kernels.silu import silu_and_gradient
from vqtune.model.kernels.stencil import keep_sum, keep_sums
from vqtune.model.kernels.ways import Operand, factor

MOST = 128
"""Channels at most: a program holds the whole weight's gradient."""


def point_gradient(
    back: Operand, weight: Tensor, before: Operand, weight_part: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor | None]:
    """(dz, its partial sums) of the input before its activation, or (the input's gradient, None) where there is none.

    The weight's partial gradients go to `weight_part`, and a bias's.
    """
    M, C, H, W = before.x.shape
    CO, G, n = weight.shape[0], len(weight_part), M * H * W
    out = torch.empty_like(before.x)
    part_2GC = None if before.coef is None else torch.empty(2, G, C, device=out.device)
    CP, OP = (max(16, triton.next_power_of_2(width)) for width in (C, CO))
    _point_gradient[(G,)](
        back.x,
        back.y,
        back.coef,
        weight,
        before.x,
        before.coef,
        out,
        part_2GC,
        weight_part,
        n,
        triton.cdiv(triton.cdiv(n, 32), G),
        weight_part.shape[1],
        C=C,
        CO=CO,
        WC=weight.stride(1),
        WO=weight.stride(0),
        MODE=back.mode,
        THROUGH=part_2GC is not None,
        BIAS=weight_part.shape[1] > weight.numel(),
        FACTOR=factor(dtype),
        BM=32,
        CP=CP,
        OP=OP,
        num_warps=8 if CP * OP > 2048 else 4,
        num_stages=1,
        maxnreg=168,
    )
    return out, part_2GC


@triton.jit(do_not_specialize=("n", "tiles_each", "stride"))
@no_type_check
def _point_gradient(
    dz_ptr,
    y_ptr,
    coef_ptr,
    weight_ptr,
    before_ptr,
    before_coef_ptr,
    out_ptr,
    part_ptr,
    weight_part_ptr,
    n,
    tiles_each,
    stride,
    C: tl.constexpr,
    CO: tl.constexpr,
    WC: tl.constexpr,
    WO: tl.constexpr,
    MODE: tl.constexpr,
    THROUGH: tl.constexpr,
    BIAS: tl.constexpr,
    FACTOR: tl.constexpr,
    BM: tl.constexpr,
    CP: tl.constexpr,
    OP: tl.constexpr,
):
    g, QUICK = tl.program_id(0), before_ptr.dtype.element_ty != tl.float32
    r, c, o = tl.arange(0, BM)[:, None], tl.arange(0, CP)[None, :], tl.arange(0, OP)[None, :]
    u, v, w = coefficients_of(coef_ptr, o, MODE, CO)
    scale, shift, _ = coefficients_of(before_coef_ptr, c, NORMED if THROUGH else PLAIN, C)
    middle = 0.0
    if THROUGH:
        middle = mean_of(before_coef_ptr, c, C)
    to_weight = tl.trans(o) * WO + c * WC
    there = (tl.trans(o) < CO) & (c < C)
    weight = tl.load(weight_ptr + to_weight, mask=there, other=0.0).to(FACTOR)
    of_weight, of_bias = tl.zeros((OP, CP), tl.float32), tl.zeros((BM, OP), tl.float32)
    first, second = tl.zeros((BM, CP), tl.float32), tl.zeros((BM, CP), tl.float32)
    for tile in range(g * tiles_each, (g + 1) * tiles_each):
        p = tile * BM + r
        at, row = p.to(tl.int64), p < n
        dy = operand(dz_ptr, y_ptr, at * CO + o, row & (o < CO), u, v, w, MODE)
        if BIAS:
            of_bias += dy.to(tl.float32)
        dy = dy.to(FACTOR)
        da = tl.dot(dy, weight, input_precision="ieee")
        at, keep = at * C + c, row & (c < C)
        a = tl.load(before_ptr + at, mask=keep, other=0.0)
        if THROUGH:
            y = a.to(tl.float32)
            a, da = silu_and_gradient(da, y * scale + shift, QUICK)
            dz = tl.where(keep, da, 0.0)
            first += dz
            second += dz * (y - middle)
        tl.store(out_ptr + at, da.to(out_ptr.dtype.element_ty), mask=keep)
        of_weight = tl.dot(tl.trans(dy), a.to(FACTOR), of_weight, input_precision="ieee")
    if THROUGH:
        keep_sums(part_ptr, c, c < C, first, second, C)
    to = weight_part_ptr + g.to(tl.int64) * stride
    tl.store(to + to_weight, of_weight, mask=there)
    if BIAS:
        keep_sum(to + C * CO + o, of_bias, o < CO)
