"""A chain's first two convolutions forward, from one channel and depthwise of stride 2: what lies between them, the
largest tensor of all, is never stored but made anew out of the one channel wherever it is needed.

The moments of the first norm come out of sums of products of taps, (16, 16): row and column t < 9 are the input at tap
t = 3 * row + column, row and column 9 are ones. Squares would cancel out of an input whose mean is many deviations off;
normalised features have none. Legend: that of `vqtune.model.kernels.chain`; HS x WS the input's patches, H x W those of
the depthwise result, P pixels of a tile, CP its channels, G partial sums added at once.
"""

from __future__ import annotations

from typing import no_type_check

import triton
import triton.language as tl

from vqtune.model.kernels.moments import keep_coefficients, keep_running
from vqtune.model.kernels.operands import NEAR, NORMED, away, coefficients_of, deviations, inside, place
from vqtune.model.kernels.silu import silu
from vqtune.model.kernels.stencil import keep_sums, nine

ONES = tl.constexpr(9)
"""The row of ones."""


@triton.jit(do_not_specialize=("n", "tiles_each"))
@no_type_check
def products_of_taps(
    x_ptr, part_ptr, n, tiles_each, HS: tl.constexpr, WS: tl.constexpr, FACTOR: tl.constexpr, BM: tl.constexpr
):
    """Each program's part, (16, 16)."""
    r, k = tl.arange(0, BM)[None, :], tl.arange(0, 16)[:, None]
    dh, dw = away(k, 0, NEAR)
    acc = tl.zeros((16, 16), tl.float32)
    begin = tl.program_id(0) * tiles_each
    for tile in range(begin, begin + tiles_each):
        p = tile * BM + r
        row, column, number = place(p, HS, WS, HS, WS, NEAR)
        keep = inside(p, n, row, column, dh, dw, HS, WS, NEAR) & (k < 9)
        x = tl.load(x_ptr + (number + (dh * WS + dw)), mask=keep, other=0.0).to(tl.float32)
        x = tl.where((k == ONES) & (p < n), 1.0, x)
        most = x.to(FACTOR)
        acc = tl.dot(most, tl.trans(most), acc, input_precision="ieee")
        if tl.float32 != FACTOR:  # what is left of x: moments are of the x that values are made of
            rest = (x - most.to(tl.float32)).to(FACTOR)
            acc = tl.dot(most, tl.trans(rest), acc, input_precision="ieee")
            acc = tl.dot(rest, tl.trans(most), acc, input_precision="ieee")
    at = k * 16 + tl.arange(0, 16)[None, :]
    tl.store(part_ptr + tl.program_id(0) * 256 + at, acc)


@triton.jit
@no_type_check
def taps_of(weight_ptr, c, WC: tl.constexpr, WT: tl.constexpr, C: tl.constexpr):
    """The weight's taps and 0 below, (16, channels)."""
    k = tl.arange(0, 16)[:, None]
    return tl.load(weight_ptr + k * WT + c * WC, mask=(k < 9) & (c < C), other=0.0).to(tl.float32)


@triton.jit
@no_type_check
def times_taps(gram, taps):
    """(16, 16) times (16, channels)."""
    return tl.sum(gram[:, :, None] * taps[None, :, :], axis=1)


@triton.jit
@no_type_check
def row_of(table, row):
    """(1, channels) out of (16, channels)."""
    return tl.sum(tl.where(tl.arange(0, 16)[:, None] == row, table, 0.0), axis=0)[None, :]


@triton.jit(do_not_specialize=("rows", "programs"))
@no_type_check
def first_moments(
    part_ptr,
    gram_ptr,
    conv_ptr,
    weight_ptr,
    bias_ptr,
    mean_ptr,
    var_ptr,
    coef_ptr,
    rows,
    programs,
    momentum,
    eps,
    WC: tl.constexpr,
    WT: tl.constexpr,
    C: tl.constexpr,
    CB: tl.constexpr,
    G: tl.constexpr,
):
    """The first norm's coefficients, whose running mean and variance move. The sums of products are stored, too."""
    i, k = tl.arange(0, G)[:, None], tl.arange(0, 256)[None, :]
    total = tl.zeros((G, 256), tl.float32)
    for start in range(0, programs, G):
        total += tl.load(part_ptr + (start + i) * 256 + k, mask=start + i < programs, other=0.0)
    gram = tl.sum(total, axis=0)
    if tl.program_id(0) == 0:
        tl.store(gram_ptr + tl.arange(0, 256), gram)
    c = tl.program_id(0) * CB + tl.arange(0, CB)[None, :]
    there = c < C
    taps = taps_of(conv_ptr, c, WC, WT, C)
    made = times_taps(tl.reshape(gram, (16, 16)), taps)
    mean = row_of(made, ONES) / rows
    var = tl.sum(made * taps, axis=0)[None, :] / rows - mean * mean
    var = tl.where(var < 0, 0.0, var)  # a NaN stays one
    old_mean = tl.load(mean_ptr + c, mask=there, other=0.0)
    old_var = tl.load(var_ptr + c, mask=there, other=1.0)
    keep_running(mean_ptr, var_ptr, c, there, old_mean, old_var, mean - old_mean, var, rows, momentum)
    keep_coefficients(coef_ptr, weight_ptr, bias_ptr, c, there, mean, var, eps, C)


@triton.jit
@no_type_check
def scaled(taps, scale):
    """The taps of convolution and norm in one."""
    t0, t1, t2, t3, t4, t5, t6, t7, t8 = taps
    return t0 * scale, t1 * scale, t2 * scale, t3 * scale, t4 * scale, t5 * scale, t6 * scale, t7 * scale, t8 * scale


@triton.jit
@no_type_check
def convolved(shift, above, here, below, taps):
    """`shift` and three rows of three pixels, times the taps."""
    a0, a1, a2 = above
    b0, b1, b2 = here
    c0, c1, c2 = below
    t0, t1, t2, t3, t4, t5, t6, t7, t8 = taps
    z = shift + a0 * t0 + a1 * t1 + a2 * t2
    z = z + b0 * t3 + b1 * t4 + b2 * t5
    return z + c0 * t6 + c1 * t7 + c2 * t8


@triton.jit
@no_type_check
def _five(x_ptr, at, keep, column, WS: tl.constexpr):
    """Five pixels of a row around `at`, whose column is even."""
    left, right = keep & (column > 0), keep & (column + 1 < WS)
    return (
        tl.load(x_ptr + at - 2, mask=left, other=0.0).to(tl.float32),
        tl.load(x_ptr + at - 1, mask=left, other=0.0).to(tl.float32),
        tl.load(x_ptr + at, mask=keep, other=0.0).to(tl.float32),
        tl.load(x_ptr + at + 1, mask=right, other=0.0).to(tl.float32),
        tl.load(x_ptr + at + 2, mask=keep & (column + 2 < WS), other=0.0).to(tl.float32),
    )


@triton.jit
@no_type_check
def _tap_row(acc, above, here, below, taps, shift, keep, left, right, w_left, w_here, w_right, QUICK: tl.constexpr):
    """`acc` and one row of the depthwise kernel, over the activation of three pixels out of fifteen of the input."""
    a0, a1, a2, a3, a4 = above
    b0, b1, b2, b3, b4 = here
    c0, c1, c2, c3, c4 = below
    z = convolved(shift, (a0, a1, a2), (b0, b1, b2), (c0, c1, c2), taps)
    acc += tl.where(keep & left, silu(z, QUICK), 0.0) * w_left
    z = convolved(shift, (a1, a2, a3), (b1, b2, b3), (c1, c2, c3), taps)
    acc += tl.where(keep, silu(z, QUICK), 0.0) * w_here
    z = convolved(shift, (a2, a3, a4), (b2, b3, b4), (c2, c3, c4), taps)
    acc += tl.where(keep & right, silu(z, QUICK), 0.0) * w_right
    return acc


@triton.jit(do_not_specialize=("n", "tiles_each"))
@no_type_check
def first_thin(
    x_ptr,
    conv_ptr,
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
    WC: tl.constexpr,
    WT: tl.constexpr,
    MOMENTS: tl.constexpr,
    C: tl.constexpr,
    P: tl.constexpr,
    CP: tl.constexpr,
):
    """n pixels of H x W out of HS x WS; with `MOMENTS` also sums of deviations from `near` and of their squares."""
    r, c = tl.arange(0, P)[:, None], tl.arange(0, CP)[None, :]
    there, QUICK = c < C, out_ptr.dtype.element_ty != tl.float32
    scale, shift, _ = coefficients_of(coef_ptr, c, NORMED, C)
    taps = scaled(nine(conv_ptr, c, WC, WT, C, False), scale)
    w0, w1, w2, w3, w4, w5, w6, w7, w8 = nine(weight_ptr, c, 9, 1, C, False)
    first, second = tl.zeros((P, CP), tl.float32), tl.zeros((P, CP), tl.float32)
    near = 0.0
    if MOMENTS:
        near = tl.load(near_ptr + c, mask=there, other=0.0)
    begin = tl.program_id(0) * tiles_each
    for tile in range(begin, begin + tiles_each):
        p = tile * P + r
        row, column = p // W % H * 2, p % W * 2
        at = (p // (H * W)).to(tl.int64) * (HS * WS) + row * WS + column
        seen, up, down = p < n, row > 0, row + 1 < HS
        x0 = _five(x_ptr, at - 2 * WS, seen & up, column, WS)
        x1 = _five(x_ptr, at - WS, seen & up, column, WS)
        x2 = _five(x_ptr, at, seen, column, WS)
        x3 = _five(x_ptr, at + WS, seen & down, column, WS)
        x4 = _five(x_ptr, at + 2 * WS, seen & (row + 2 < HS), column, WS)
        left, right = column > 0, column + 1 < WS
        acc = tl.zeros((P, CP), tl.float32)
        acc = _tap_row(acc, x0, x1, x2, taps, shift, seen & up, left, right, w0, w1, w2, QUICK)
        acc = _tap_row(acc, x1, x2, x3, taps, shift, seen, left, right, w3, w4, w5, QUICK)
        acc = _tap_row(acc, x2, x3, x4, taps, shift, seen & down, left, right, w6, w7, w8, QUICK)
        keep = seen & there
        tl.store(out_ptr + p.to(tl.int64) * C + c, acc.to(out_ptr.dtype.element_ty), mask=keep)
        if MOMENTS:
            first, second = deviations(first, second, acc, near, keep)
    if MOMENTS:
        keep_sums(part_ptr, c, there, first, second, C)
