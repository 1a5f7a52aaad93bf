"""The way back through a chain's first two convolutions, whose middle is not stored (as in `first_passes`).

The gradient of the first weight is the sum over pixels of dy * tap, and dy = scale * dz + slope * y + offset: with the
products of taps that were added up forward, all that is missing are the sums of dz * tap. Those of dz * y, which slope
asks for, follow from them, too.
"""

from __future__ import annotations

from typing import no_type_check

import triton
import triton.language as tl

from vqtune.model.kernels.first_passes import ONES, convolved, row_of, scaled, taps_of, times_taps
from vqtune.model.kernels.moments import slope_and_offset
from vqtune.model.kernels.operands import LAZY, MEAN, NORMED, RSTD, SCALE, coefficients_of
from vqtune.model.kernels.silu import silu_and_gradient
from vqtune.model.kernels.stencil import keep_nine, keep_sum, nine
from vqtune.model.kernels.thin import corner

SUMS = tl.constexpr(10)
"""Partial sums of a channel: of dz * tap, and of dz."""


@triton.jit
@no_type_check
def _four(x_ptr, at, keep, column, WS: tl.constexpr):
    """Four pixels of a row around `at` and the next, whose column is even."""
    return (
        tl.load(x_ptr + at - 1, mask=keep & (column > 0), other=0.0).to(tl.float32),
        tl.load(x_ptr + at, mask=keep, other=0.0).to(tl.float32),
        tl.load(x_ptr + at + 1, mask=keep & (column + 1 < WS), other=0.0).to(tl.float32),
        tl.load(x_ptr + at + 2, mask=keep & (column + 2 < WS), other=0.0).to(tl.float32),
    )


@triton.jit
@no_type_check
def _pixel(da, above, here, below, taps, shift, keep, sums, QUICK: tl.constexpr):
    """(the activation of one pixel, `sums` and this pixel's part of them)."""
    a0, a1, a2 = above
    b0, b1, b2 = here
    c0, c1, c2 = below
    s0, s1, s2, s3, s4, s5, s6, s7, s8, s9 = sums
    a, dz = silu_and_gradient(da, convolved(shift, above, here, below, taps), QUICK)
    a, dz = tl.where(keep, a, 0.0), tl.where(keep, dz, 0.0)
    s0, s1, s2 = s0 + dz * a0, s1 + dz * a1, s2 + dz * a2
    s3, s4, s5 = s3 + dz * b0, s4 + dz * b1, s5 + dz * b2
    s6, s7, s8 = s6 + dz * c0, s7 + dz * c1, s8 + dz * c2
    return a, (s0, s1, s2, s3, s4, s5, s6, s7, s8, s9 + dz)


@triton.jit(do_not_specialize=("n", "tiles_each", "stride"))
@no_type_check
def first_gradient(
    dz_ptr,
    y_ptr,
    back_coef_ptr,
    weight_ptr,
    x_ptr,
    conv_ptr,
    coef_ptr,
    part_ptr,
    weight_part_ptr,
    n,
    tiles_each,
    stride,
    H: tl.constexpr,
    W: tl.constexpr,
    HS: tl.constexpr,
    WS: tl.constexpr,
    WC: tl.constexpr,
    WT: tl.constexpr,
    C: tl.constexpr,
    P: tl.constexpr,
    CP: tl.constexpr,
):
    """Partial sums of the first layer, (G, 10, C), and of the depthwise weight's gradient. By the four pixels of
    the depthwise input of each `corner`."""
    g, QUICK = tl.program_id(0), dz_ptr.dtype.element_ty != tl.float32
    r, c = tl.arange(0, P)[:, None], tl.arange(0, CP)[None, :]
    there = c < C
    u, v, w = coefficients_of(back_coef_ptr, c, LAZY, C)
    scale, shift, _ = coefficients_of(coef_ptr, c, NORMED, C)
    taps = scaled(nine(conv_ptr, c, WC, WT, C, False), scale)
    w0, w1, w2, w3, w4, w5, w6, w7, w8 = nine(weight_ptr, c, 9, 1, C, False)
    zero = tl.zeros((P, CP), tl.float32)
    g0, g1, g2, g3, g4, g5, g6, g7, g8 = zero, zero, zero, zero, zero, zero, zero, zero, zero
    sums = (zero, zero, zero, zero, zero, zero, zero, zero, zero, zero)
    begin = g * tiles_each
    for tile in range(begin, begin + tiles_each):
        p = tile * P + r
        row, column = p // W % H * 2, p % W * 2
        seen = p < n
        keep = seen & there
        here, east, south, both = corner(dz_ptr, y_ptr, p, row, column, keep, c, u, v, w, H, W, C)
        at = (p // (H * W)).to(tl.int64) * (HS * WS) + row * WS + column
        a0, a1, a2, a3 = _four(x_ptr, at - WS, seen & (row > 0), column, WS)
        b0, b1, b2, b3 = _four(x_ptr, at, seen, column, WS)
        c0, c1, c2, c3 = _four(x_ptr, at + WS, seen & (row + 1 < HS), column, WS)
        d0, d1, d2, d3 = _four(x_ptr, at + 2 * WS, seen & (row + 2 < HS), column, WS)
        across, down = keep & (column + 1 < WS), row + 1 < HS
        a, sums = _pixel(here * w4, (a0, a1, a2), (b0, b1, b2), (c0, c1, c2), taps, shift, keep, sums, QUICK)
        g4 += here * a
        da = here * w5 + east * w3
        a, sums = _pixel(da, (a1, a2, a3), (b1, b2, b3), (c1, c2, c3), taps, shift, across, sums, QUICK)
        g5 += here * a
        g3 += east * a
        da = here * w7 + south * w1
        a, sums = _pixel(da, (b0, b1, b2), (c0, c1, c2), (d0, d1, d2), taps, shift, keep & down, sums, QUICK)
        g7 += here * a
        g1 += south * a
        da = here * w8 + east * w6 + south * w2 + both * w0
        a, sums = _pixel(da, (b1, b2, b3), (c1, c2, c3), (d1, d2, d3), taps, shift, across & down, sums, QUICK)
        g8 += here * a
        g6 += east * a
        g2 += south * a
        g0 += both * a
    s0, s1, s2, s3, s4, s5, s6, s7, s8, s9 = sums
    to = part_ptr + g * (SUMS * C) + c
    keep_nine(to, C, there, s0, s1, s2, s3, s4, s5, s6, s7, s8)
    keep_sum(to + 9 * C, s9, there)
    to = weight_part_ptr + g.to(tl.int64) * stride + c * 9
    keep_nine(to, 1, there, g0, g1, g2, g3, g4, g5, g6, g7, g8)


@triton.jit(do_not_specialize=("rows", "programs"))
@no_type_check
def first_weight(
    part_ptr,
    gram_ptr,
    conv_ptr,
    coef_ptr,
    out_ptr,
    dweight_ptr,
    dbias_ptr,
    rows,
    programs,
    WC: tl.constexpr,
    WT: tl.constexpr,
    C: tl.constexpr,
    CB: tl.constexpr,
    G: tl.constexpr,
):
    """The gradients of the first weight, in its order, and of its norm's weight and bias."""
    c = tl.program_id(0) * CB + tl.arange(0, CB)[None, :]
    k, there = tl.arange(0, 16)[:, None], c < C
    i, at = tl.arange(0, G)[:, None, None], (k * C + c)[None, :, :]
    keep = ((k < SUMS) & there)[None, :, :]
    total = tl.zeros((G, 16, CB), tl.float32)
    for start in range(0, programs, G):
        j = start + i
        total += tl.load(part_ptr + j * (SUMS * C) + at, mask=(j < programs) & keep, other=0.0)
    of_taps = tl.sum(total, axis=0)
    sum_z = row_of(of_taps, ONES)
    mean = tl.load(coef_ptr + MEAN * C + c, mask=there, other=0.0)
    rstd = tl.load(coef_ptr + RSTD * C + c, mask=there, other=0.0)
    scale = tl.load(coef_ptr + SCALE * C + c, mask=there, other=0.0)
    taps = taps_of(conv_ptr, c, WC, WT, C)
    gram = tl.load(gram_ptr + k * 16 + tl.arange(0, 16)[None, :])
    sum_zu = (tl.sum(of_taps * taps, axis=0)[None, :] - mean * sum_z) * rstd
    slope, offset = slope_and_offset(scale, rstd, mean, sum_z, sum_zu, rows)
    of_ones = tl.sum(tl.where(tl.arange(0, 16)[None, :] == ONES, gram, 0.0), axis=1)[:, None]
    made = scale * of_taps + slope * times_taps(gram, taps) + offset * of_ones
    tl.store(out_ptr + k * WT + c * WC, made, mask=(k < 9) & there)
    tl.store(dweight_ptr + c, sum_zu, mask=there)
    tl.store(dbias_ptr + c, sum_z, mask=there)
