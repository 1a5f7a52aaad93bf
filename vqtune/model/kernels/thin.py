"""Depthwise 3x3 convolutions in a chain, of stride 2 and of stride 1: the input's activation is made as it is read, and
the gradients of input and weight come out of one pass.

Legend: that of `vqtune.model.kernels.chain`; P pixels of a tile, CP its channels (C, padded to a power of two).
"""

from __future__ import annotations

from typing import no_type_check

import triton
import triton.language as tl

from vqtune.model.kernels.operands import LAZY, NORMED, PLAIN, coefficients_of, deviations, mean_of, operand
from vqtune.model.kernels.silu import silu, silu_gradient
from vqtune.model.kernels.stencil import keep_nine, keep_sums, nine

_COUNTS = ("n", "tiles_each", "stride")


@triton.jit
@no_type_check
def _row(acc, x_ptr, at, keep, left, right, w_left, w_here, w_right, u, v, w, MODE: tl.constexpr, C: tl.constexpr):
    """`acc` and one row of the kernel."""
    acc += operand(x_ptr, x_ptr, at - C, keep & left, u, v, w, MODE).to(tl.float32) * w_left
    acc += operand(x_ptr, x_ptr, at, keep, u, v, w, MODE).to(tl.float32) * w_here
    acc += operand(x_ptr, x_ptr, at + C, keep & right, u, v, w, MODE).to(tl.float32) * w_right
    return acc


@triton.jit(do_not_specialize=_COUNTS)
@no_type_check
def thin(
    x_ptr,
    coef_ptr,
    weight_ptr,
    out_ptr,
    near_ptr,
    part_ptr,
    n,
    tiles_each,
    H: tl.constexpr,
    W: tl.constexpr,
    HS: tl.constexpr,
    WS: tl.constexpr,
    MODE: tl.constexpr,
    S: tl.constexpr,
    MOMENTS: tl.constexpr,
    C: tl.constexpr,
    P: tl.constexpr,
    CP: tl.constexpr,
):
    """Of n pixels of H x W out of HS x WS, S apart; with `MOMENTS` also sums of deviations from `near` and squares."""
    r, c = tl.arange(0, P)[:, None], tl.arange(0, CP)[None, :]
    there = c < C
    u, v, w = coefficients_of(coef_ptr, c, MODE, C)
    w0, w1, w2, w3, w4, w5, w6, w7, w8 = nine(weight_ptr, c, 9, 1, C, False)
    first, second = tl.zeros((P, CP), tl.float32), tl.zeros((P, CP), tl.float32)
    near = 0.0
    if MOMENTS:
        near = tl.load(near_ptr + c, mask=there, other=0.0)
    begin = tl.program_id(0) * tiles_each
    for tile in range(begin, begin + tiles_each):
        p = tile * P + r
        row, column = p // W % H * S, p % W * S
        at = ((p // (H * W)).to(tl.int64) * (HS * WS) + row * WS + column) * C + c
        keep = (p < n) & there
        left, right = column > 0, column + 1 < WS
        acc = tl.zeros((P, CP), tl.float32)
        acc = _row(acc, x_ptr, at - WS * C, keep & (row > 0), left, right, w0, w1, w2, u, v, w, MODE, C)
        acc = _row(acc, x_ptr, at, keep, left, right, w3, w4, w5, u, v, w, MODE, C)
        acc = _row(acc, x_ptr, at + WS * C, keep & (row + 1 < HS), left, right, w6, w7, w8, u, v, w, MODE, C)
        tl.store(out_ptr + p.to(tl.int64) * C + c, acc.to(out_ptr.dtype.element_ty), mask=keep)
        if MOMENTS:
            first, second = deviations(first, second, acc, near, keep)
    if MOMENTS:
        keep_sums(part_ptr, c, there, first, second, C)


@triton.jit
@no_type_check
def corner(dz_ptr, y_ptr, p, row, column, keep, c, u, v, w, H: tl.constexpr, W: tl.constexpr, C: tl.constexpr):
    """Gradients of a pixel of a result of stride 2 and of its neighbours right, below and both: all that four pixels of
    the input, the first at (row, column), are in."""
    right, below = column + 2 < 2 * W, row + 2 < 2 * H
    at = p.to(tl.int64) * C + c
    return (
        operand(dz_ptr, y_ptr, at, keep, u, v, w, LAZY),
        operand(dz_ptr, y_ptr, at + C, keep & right, u, v, w, LAZY),
        operand(dz_ptr, y_ptr, at + W * C, keep & below, u, v, w, LAZY),
        operand(dz_ptr, y_ptr, at + (W + 1) * C, keep & right & below, u, v, w, LAZY),
    )


@triton.jit
@no_type_check
def _back(da, before_ptr, out_ptr, at, keep, scale, shift, middle, sum_z, sum_zy):
    """One input pixel: stores dz, adds to its sums, gives the activation."""
    y = tl.load(before_ptr + at, mask=keep, other=0.0).to(tl.float32)
    z, quick = y * scale + shift, before_ptr.dtype.element_ty != tl.float32
    dz = tl.where(keep, silu_gradient(da, z, quick), 0.0)
    tl.store(out_ptr + at, dz.to(out_ptr.dtype.element_ty), mask=keep)
    return sum_z + dz, sum_zy + dz * (y - middle), tl.where(keep, silu(z, quick), 0.0)


@triton.jit(do_not_specialize=_COUNTS)
@no_type_check
def thin_gradient(
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
    H: tl.constexpr,
    W: tl.constexpr,
    HS: tl.constexpr,
    WS: tl.constexpr,
    C: tl.constexpr,
    P: tl.constexpr,
    CP: tl.constexpr,
):
    """Of stride 2, by the four pixels of the input of each `corner`."""
    g = tl.program_id(0)
    r, c = tl.arange(0, P)[:, None], tl.arange(0, CP)[None, :]
    there = c < C
    u, v, w = coefficients_of(coef_ptr, c, LAZY, C)
    scale, shift, _ = coefficients_of(before_coef_ptr, c, NORMED, C)
    middle = mean_of(before_coef_ptr, c, C)
    w0, w1, w2, w3, w4, w5, w6, w7, w8 = nine(weight_ptr, c, 9, 1, C, False)
    zero = tl.zeros((P, CP), tl.float32)
    a0, a1, a2, a3, a4, a5, a6, a7, a8 = zero, zero, zero, zero, zero, zero, zero, zero, zero
    sum_z, sum_zy = zero, zero
    begin = g * tiles_each
    for tile in range(begin, begin + tiles_each):
        p = tile * P + r
        row, column = p // W % H * 2, p % W * 2
        keep = (p < n) & there
        here, east, south, both = corner(dz_ptr, y_ptr, p, row, column, keep, c, u, v, w, H, W, C)
        at = ((p // (H * W)).to(tl.int64) * (HS * WS) + row * WS + column) * C + c
        across, down = keep & (column + 1 < WS), row + 1 < HS
        da = here * w4
        sum_z, sum_zy, x = _back(da, before_ptr, out_ptr, at, keep, scale, shift, middle, sum_z, sum_zy)
        a4 += here * x
        da = here * w5 + east * w3
        sum_z, sum_zy, x = _back(da, before_ptr, out_ptr, at + C, across, scale, shift, middle, sum_z, sum_zy)
        a5 += here * x
        a3 += east * x
        at += WS * C
        da = here * w7 + south * w1
        sum_z, sum_zy, x = _back(da, before_ptr, out_ptr, at, keep & down, scale, shift, middle, sum_z, sum_zy)
        a7 += here * x
        a1 += south * x
        da = here * w8 + east * w6 + south * w2 + both * w0
        sum_z, sum_zy, x = _back(da, before_ptr, out_ptr, at + C, across & down, scale, shift, middle, sum_z, sum_zy)
        a8 += here * x
        a6 += east * x
        a2 += south * x
        a0 += both * x
    keep_sums(part_ptr, c, there, sum_z, sum_zy, C)
    to = weight_part_ptr + g.to(tl.int64) * stride
    keep_nine(to + c * 9, 1, there, a0, a1, a2, a3, a4, a5, a6, a7, a8)


@triton.jit
@no_type_check
def _neighbour(da, sum_t, a, dz_ptr, y_ptr, at, keep, u, v, w, tap):
    """`da` and a tap's sum with the part of one neighbour in the result."""
    dy = operand(dz_ptr, y_ptr, at, keep, u, v, w, LAZY)
    return da + dy * tap, sum_t + dy * a


@triton.jit(do_not_specialize=_COUNTS)
@no_type_check
def level_gradient(
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
    H: tl.constexpr,
    W: tl.constexpr,
    THROUGH: tl.constexpr,
    C: tl.constexpr,
    P: tl.constexpr,
    CP: tl.constexpr,
):
    """Of stride 1, where nine pixels of the result are all that one of the input is in. `THROUGH`: the input has an
    activation, and sums come out."""
    g = tl.program_id(0)
    r, c = tl.arange(0, P)[:, None], tl.arange(0, CP)[None, :]
    there, QUICK = c < C, before_ptr.dtype.element_ty != tl.float32
    u, v, w = coefficients_of(coef_ptr, c, LAZY, C)
    scale, shift, _ = coefficients_of(before_coef_ptr, c, NORMED if THROUGH else PLAIN, C)
    middle = 0.0
    if THROUGH:
        middle = mean_of(before_coef_ptr, c, C)
    w0, w1, w2, w3, w4, w5, w6, w7, w8 = nine(weight_ptr, c, 9, 1, C, False)
    zero = tl.zeros((P, CP), tl.float32)
    a0, a1, a2, a3, a4, a5, a6, a7, a8 = zero, zero, zero, zero, zero, zero, zero, zero, zero
    sum_z, sum_zy = zero, zero
    begin = g * tiles_each
    for tile in range(begin, begin + tiles_each):
        p = tile * P + r
        row, column = p // W % H, p % W
        keep = (p < n) & there
        at = p.to(tl.int64) * C + c
        y = tl.load(before_ptr + at, mask=keep, other=0.0).to(tl.float32)
        a, z = y, y * scale + shift
        if THROUGH:
            a = silu(z, QUICK)
        above, below = keep & (row > 0), keep & (row + 1 < H)
        left, right = column > 0, column + 1 < W
        da, up, down = zero, at - W * C, at + W * C
        da, a0 = _neighbour(da, a0, a, dz_ptr, y_ptr, down + C, below & right, u, v, w, w0)
        da, a1 = _neighbour(da, a1, a, dz_ptr, y_ptr, down, below, u, v, w, w1)
        da, a2 = _neighbour(da, a2, a, dz_ptr, y_ptr, down - C, below & left, u, v, w, w2)
        da, a3 = _neighbour(da, a3, a, dz_ptr, y_ptr, at + C, keep & right, u, v, w, w3)
        da, a4 = _neighbour(da, a4, a, dz_ptr, y_ptr, at, keep, u, v, w, w4)
        da, a5 = _neighbour(da, a5, a, dz_ptr, y_ptr, at - C, keep & left, u, v, w, w5)
        da, a6 = _neighbour(da, a6, a, dz_ptr, y_ptr, up + C, above & right, u, v, w, w6)
        da, a7 = _neighbour(da, a7, a, dz_ptr, y_ptr, up, above, u, v, w, w7)
        da, a8 = _neighbour(da, a8, a, dz_ptr, y_ptr, up - C, above & left, u, v, w, w8)
        if THROUGH:
            da = tl.where(keep, silu_gradient(da, z, QUICK), 0.0)
            sum_z += da
            sum_zy += da * (y - middle)
        tl.store(out_ptr + at, da.to(out_ptr.dtype.element_ty), mask=keep)
    if THROUGH:
        keep_sums(part_ptr, c, there, sum_z, sum_zy, C)
    to = weight_part_ptr + g.to(tl.int64) * stride
    keep_nine(to + c * 9, 1, there, a0, a1, a2, a3, a4, a5, a6, a7, a8)
