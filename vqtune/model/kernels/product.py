"""Convolutions as products of matrices, their operands gathered on the way: forward passes, gradients of inputs and of
weights.

Rows are pixels; columns of the gathered operand are channels, tap by tap. A weight is read as it lies. Legend: that of
`vqtune.model.kernels.chain`; BM, BK, BN rows, columns and results of a tile.
"""

from __future__ import annotations

from typing import no_type_check

import triton
import triton.language as tl

from vqtune.model.kernels.operands import (
    NORMED,
    PLAIN,
    away,
    coefficients_of,
    deviations,
    inside,
    mean_of,
    operand,
    place,
    target,
    weight_tap,
)
from vqtune.model.kernels.silu import silu_gradient

STORE, MOMENTS, SILU = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
"""What becomes of a result: it is stored; and its moments are collected; it goes back through an activation first."""


@triton.jit(do_not_specialize=("n", "tiles_each"))
@no_type_check
def product(
    x_ptr,
    y_ptr,
    coef_ptr,
    weight_ptr,
    bias_ptr,
    out_ptr,
    before_ptr,
    before_coef_ptr,
    near_ptr,
    part_ptr,
    n,
    tiles_each,
    H: tl.constexpr,
    W: tl.constexpr,
    KIND: tl.constexpr,
    TAPS: tl.constexpr,
    C: tl.constexpr,
    CO: tl.constexpr,
    MODE: tl.constexpr,
    END: tl.constexpr,
    WT: tl.constexpr,
    WC: tl.constexpr,
    WO: tl.constexpr,
    FACTOR: tl.constexpr,
    BM: tl.constexpr,
    BK: tl.constexpr,
    BN: tl.constexpr,
):
    """The operand (`MODE`, of C channels) times the weight, with CO columns, and a bias; programs are (rows, columns,
    parities).

    With `MOMENTS`, sums of deviations from `near` and of their squares come out, too. With `SILU`, `before` is the
    layer's input before its activation: dz comes out, and sums of it and of its products with deviations of the input.
    """
    side = tl.program_id(2)
    g, programs = side * tl.num_programs(0) + tl.program_id(0), tl.num_programs(2) * tl.num_programs(0)
    r, k = tl.arange(0, BM)[:, None], tl.arange(0, BK)
    o = tl.program_id(1) * BN + tl.arange(0, BN)
    there = (o < CO)[None, :]
    first, second = tl.zeros((BM, BN), tl.float32), tl.zeros((BM, BN), tl.float32)
    CHUNKS: tl.constexpr = (C + BK - 1) // BK
    u, v, w = coefficients_of(coef_ptr, k[None, :], MODE, C)
    scale, shift, _ = coefficients_of(before_coef_ptr, o[None, :], NORMED if END == SILU else PLAIN, CO)
    middle = 0.0
    if END == SILU:
        middle = mean_of(before_coef_ptr, o[None, :], CO)
    if END == MOMENTS:
        middle = tl.load(near_ptr + o, mask=o < CO, other=0.0)[None, :]
    bias = 0.0
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + o, mask=o < CO, other=0.0)[None, :]
    begin = tl.program_id(0) * tiles_each
    for tile in range(begin, begin + tiles_each):
        p = tile * BM + r
        row, column, number = place(p, H, W, H, W, KIND)
        acc = tl.zeros((BM, BN), tl.float32)
        for i in range(0, TAPS * CHUNKS):
            tap, c = i // CHUNKS, i % CHUNKS * BK + k
            dh, dw = away(tap, side, KIND)
            keep = inside(p, n, row, column, dh, dw, H, W, KIND) & (c < C)[None, :]
            if CHUNKS > 1:
                u, v, w = coefficients_of(coef_ptr, c[None, :], MODE, C)
            at = (number + (dh * W + dw)) * C + c[None, :]
            x = operand(x_ptr, y_ptr, at, keep, u, v, w, MODE)
            at = weight_tap(tap, side, KIND) * WT + c[:, None] * WC + o[None, :] * WO
            weight = tl.load(weight_ptr + at, mask=(c < C)[:, None] & there, other=0.0)
            acc = tl.dot(x.to(FACTOR), weight.to(FACTOR), acc, input_precision="ieee")
        if bias_ptr is not None:
            acc += bias
        seen = p < n
        at = target(p, side, H, W, KIND) * CO + o[None, :]
        if END == SILU:
            y = tl.load(before_ptr + at, mask=seen & there, other=0.0).to(tl.float32)
            acc = silu_gradient(acc, y * scale + shift, before_ptr.dtype.element_ty != tl.float32)
        tl.store(out_ptr + at, acc.to(out_ptr.dtype.element_ty), mask=seen & there)
        if END == MOMENTS:
            first, second = deviations(first, second, acc, middle, seen)
        if END == SILU:
            dz = tl.where(seen, acc, 0.0)
            first += dz
            second += dz * (y - middle)
    if END != STORE:
        tl.store(part_ptr + g * CO + o, tl.sum(first, axis=0), mask=o < CO)
        tl.store(part_ptr + (programs + g) * CO + o, tl.sum(second, axis=0), mask=o < CO)


@triton.jit
@no_type_check
def _gathered(
    x_ptr, y_ptr, p, n, row, column, number, tap, c, u, v, w,
    HS: tl.constexpr, WS: tl.constexpr, KIND: tl.constexpr, C: tl.constexpr, MODE: tl.constexpr,
):  # fmt: skip
    """One tap's channels of a tile of pixels."""
    dh, dw = away(tap, 0, KIND)
    keep = inside(p, n, row, column, dh, dw, HS, WS, KIND) & (c < C)[None, :]
    return operand(x_ptr, y_ptr, (number + (dh * WS + dw)) * C + c[None, :], keep, u, v, w, MODE)


@triton.jit
@no_type_check
def _keep(to, acc, tap, c, o, WT: tl.constexpr, WC: tl.constexpr, WO: tl.constexpr, C: tl.constexpr, CO: tl.constexpr):
    at = tap * WT + c[None, :] * WC + o[:, None] * WO
    tl.store(to + at, acc, mask=(c < C)[None, :] & (o < CO)[:, None])


@triton.jit(do_not_specialize=("n", "rows_each", "stride"))
@no_type_check
def weight_products(
    x_ptr,
    x_y_ptr,
    x_coef_ptr,
    other_ptr,
    other_y_ptr,
    other_coef_ptr,
    part_ptr,
    n,
    rows_each,
    stride,
    H: tl.constexpr,
    W: tl.constexpr,
    HS: tl.constexpr,
    WS: tl.constexpr,
    KIND: tl.constexpr,
    TAPS: tl.constexpr,
    C: tl.constexpr,
    CO: tl.constexpr,
    MODE: tl.constexpr,
    OTHER: tl.constexpr,
    WT: tl.constexpr,
    WC: tl.constexpr,
    WO: tl.constexpr,
    FACTOR: tl.constexpr,
    BM: tl.constexpr,
    BK: tl.constexpr,
    BN: tl.constexpr,
):
    """The gathered operand times `other` (CO channels, at the pixel itself), summed over each program's rows: its part
    of the weight's gradient, in the weight's order. A program has one tap, or four of sixteen.
    """
    CHUNKS: tl.constexpr = (C + BK - 1) // BK
    r, k = tl.arange(0, BM)[:, None], tl.arange(0, BK)
    o = tl.program_id(2) * BN + tl.arange(0, BN)
    tap, c = tl.program_id(1) // CHUNKS * 4, tl.program_id(1) % CHUNKS * BK + k
    u, v, w = coefficients_of(x_coef_ptr, c[None, :], MODE, C)
    ou, ov, ow = coefficients_of(other_coef_ptr, o[None, :], OTHER, CO)
    acc = tl.zeros((BN, BK), tl.float32)
    if TAPS == 16:
        acc1, acc2, acc3 = (
            tl.zeros((BN, BK), tl.float32),
            tl.zeros((BN, BK), tl.float32),
            tl.zeros((BN, BK), tl.float32),
        )
    for start in range(0, rows_each, BM):
        p = tl.program_id(0) * rows_each + start + r
        row, column, number = place(p, H, W, HS, WS, KIND)
        at = p.to(tl.int64) * CO + o[None, :]
        other = operand(other_ptr, other_y_ptr, at, (p < n) & (o < CO)[None, :], ou, ov, ow, OTHER)
        other = tl.trans(other.to(FACTOR))
        given = (p, n, row, column, number)
        x = _gathered(x_ptr, x_y_ptr, *given, tap, c, u, v, w, HS, WS, KIND, C, MODE).to(FACTOR)
        acc = tl.dot(other, x, acc, input_precision="ieee")
        if TAPS == 16:
            x = _gathered(x_ptr, x_y_ptr, *given, tap + 1, c, u, v, w, HS, WS, KIND, C, MODE).to(FACTOR)
            acc1 = tl.dot(other, x, acc1, input_precision="ieee")
            x = _gathered(x_ptr, x_y_ptr, *given, tap + 2, c, u, v, w, HS, WS, KIND, C, MODE).to(FACTOR)
            acc2 = tl.dot(other, x, acc2, input_precision="ieee")
            x = _gathered(x_ptr, x_y_ptr, *given, tap + 3, c, u, v, w, HS, WS, KIND, C, MODE).to(FACTOR)
            acc3 = tl.dot(other, x, acc3, input_precision="ieee")
    to = part_ptr + tl.program_id(0).to(tl.int64) * stride
    _keep(to, acc, tap, c, o, WT, WC, WO, C, CO)
    if TAPS == 16:
        _keep(to, acc1, tap + 1, c, o, WT, WC, WO, C, CO)
        _keep(to, acc2, tap + 2, c, o, WT, WC, WO, C, CO)
        _keep(to, acc3, tap + 3, c, o, WT, WC, WO, C, CO)
